// SPDX-License-Identifier: MIT
// Reads a problem off tensors that nobody has checked yet. Those that tell sizes must be there with
// the right rank; lengths are read only where a one-dimensional int32 tensor in host memory holds
// them.
#include "core/derive.h"

#include <algorithm>
#include <cstring>

#include "core/checker.h"
#include "core/fail.h"
#include "core/fields.h"
#include "core/op_traits.h"

namespace msa::core {
namespace {

std::int64_t extent(const Tensor& tensor, int dimension) {
  const bool there = dimension >= 0 && dimension < tensor.rank && dimension < kMaxRank;
  return there ? tensor.shape[static_cast<std::size_t>(dimension)] : 0;
}

// By memcpy: the memory need not hold int32 objects.
std::int64_t read_unchecked(const Tensor& tensor, std::int64_t i) {
  std::int32_t value = 0;
  std::memcpy(&value, static_cast<const char*>(tensor.data) + i * tensor.stride[0] * 4,
              sizeof value);
  return value;
}

// An extent that no batch can have is not walked: validation reports it.
bool readable(const Tensor& t) {
  std::int64_t bytes = 0;
  return t.rank == 1 && t.dtype == DType::I32 && t.device.type == DeviceType::Cpu &&
         t.data != nullptr &&
         reinterpret_cast<std::uintptr_t>(t.data) % sizeof(std::int32_t) == 0 &&
         t.shape[0] <= INT32_MAX && t.stride[0] >= 0 && t.stride[0] < (std::int64_t{1} << 60) &&
         !__builtin_mul_overflow(t.shape[0], t.stride[0] * 4, &bytes);
}

// Entries that differ: with a stride of 0 all are one, however many the shape claims.
std::int64_t entries(const Tensor& t) {
  return t.stride[0] == 0 ? std::min<std::int64_t>(t.shape[0], 1) : t.shape[0];
}

struct Ranks {
  int low, high;
};
constexpr Ranks kRows{3, 3};
constexpr Ranks kRowsOrPages{3, 4};

void expect_extent(const char* name, const Tensor& tensor, int dimension, std::int64_t least) {
  const std::int64_t given = extent(tensor, dimension);
  if (given >= least) return;
  fail(ErrorCode::InvalidArgument, name, "dimension " + std::to_string(dimension),
       "at least " + std::to_string(least), std::to_string(given));
}

void expect_tensor(const char* name, const Tensor& tensor, Ranks ranks) {
  if (!tensor) fail(ErrorCode::InvalidArgument, name, "", "a tensor", "none");
  if (tensor.rank < ranks.low || tensor.rank > ranks.high) {
    const std::string also = ranks.high > ranks.low ? " or " + std::to_string(ranks.high) : "";
    fail(ErrorCode::InvalidArgument, name, "", rank_text(ranks.low, tensor.rank) + also,
         "rank " + std::to_string(tensor.rank));
  }
  for (int i = 0; i < tensor.rank; ++i) expect_extent(name, tensor, i, 0);
}

// Lengths count requests, whatever they hold.
void expect_lengths(const char* name, const Tensor& tensor, std::int64_t least) {
  if (!tensor) return;
  expect_tensor(name, tensor, {1, 1});
  expect_extent(name, tensor, 0, least);
}

void expect_queries(const char* name, const Tensor& tensor) {
  expect_tensor(name, tensor, kRows);
  const DType dtype = tensor.dtype;
  if (dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16) return;
  if (dtype == DType::E4M3) return;
  fail(ErrorCode::InvalidArgument, name, "dtype", "f32, f16, bf16 or e4m3", to_string(dtype));
}

void expect_floats(const char* name, const Tensor& tensor, Ranks ranks) {
  expect_tensor(name, tensor, ranks);
  const DType dtype = tensor.dtype;
  if (dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16) return;
  fail(ErrorCode::InvalidArgument, name, "dtype", "f32, f16 or bf16", to_string(dtype));
}

// The tensors that sizes and dtypes are read off.
void expect_sources(Op op, const Call& call) {
  const OpTraits traits = op_traits(op);
  if (traits.attends) {
    expect_queries("q", call.q);
    expect_tensor("k", call.k, kRowsOrPages);
    if (call.out || !call.block_max) expect_tensor("v", call.v, {call.k.rank, call.k.rank});
  }
  if (traits.indexes) {
    expect_queries("index_q", call.index_q);
    expect_tensor("index_k", call.index_k, kRowsOrPages);
  }
  if (traits.stores) {
    expect_floats("k_rows", call.k_rows, kRows);
    expect_floats("v_rows", call.v_rows, kRows);
    if (call.k_cache) expect_tensor("k_cache", call.k_cache, kRowsOrPages);
  }
  if (traits.copies) expect_floats("index_k", call.index_k, kRowsOrPages);
  if (op == Op::SelectTopk) expect_tensor("scores", call.scores_in, kRows);
  if (traits.teaches) {
    expect_queries("q", call.q);
    expect_tensor("k", call.k, kRowsOrPages);
  }
  if (traits.lists && (call.block_ids_in || !traits.teaches))
    expect_tensor("block_ids", call.block_ids_in, kRows);
  if (call.block_ids) expect_tensor("block_ids", call.block_ids, kRows);
  if (op == Op::MergeStates && !call.part_outs.empty()) {
    expect_floats("outs[0]", call.part_outs[0], kRows);
  }
  if (op == Op::MergeSelections && !call.part_ids.empty()) {
    expect_tensor("block_ids_parts[0]", call.part_ids[0], kRows);
  }
  expect_lengths("batch.cu_seqlens_q", call.batch.cu_seqlens_q, 1);
  expect_lengths("batch.seqlens_k", call.batch.seqlens_k, 0);
}

const Tensor& first_given(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* tensor : tensors) {
    if (*tensor) return *tensor;
  }
  return **tensors.begin();
}

Tensor first_input(const Call& call) {
  if (!call.part_outs.empty()) return call.part_outs[0];
  if (!call.part_ids.empty()) return call.part_ids[0];
  return first_given(
      {&call.q, &call.index_q, &call.scores_in, &call.block_ids_in, &call.k_rows, &call.index_k});
}

const Tensor& keys_of(const Call& call) { return call.k ? call.k : call.index_k; }

std::int64_t count_requests(const Batch& batch) {
  if (batch.cu_seqlens_q) return extent(batch.cu_seqlens_q, 0) - 1;
  return batch.seqlens_k ? extent(batch.seqlens_k, 0) : 1;
}

void expect_host(const Tensor& lengths, const char* bound, const char* argument) {
  if (lengths.device.type == DeviceType::Cpu) return;
  fail(ErrorCode::InvalidArgument, bound, "",
       std::string("a bound, as ") + argument + " lies on " + to_string(lengths.device), "-1");
}

// Bounds read off contents never exceed what the tensors can hold, so that a wild length cannot ask
// for a wild workspace; the length itself is reported by the run.
std::int64_t longest_query(const Call& call, std::int64_t total_q) {
  const Tensor& starts = call.batch.cu_seqlens_q;
  if (!starts) return total_q;
  expect_host(starts, "settings.max_seqlen_q", "batch.cu_seqlens_q");
  if (!readable(starts)) return 0;
  std::int64_t longest = 0;
  for (std::int64_t b = 0; b + 1 < entries(starts); ++b) {
    longest = std::max(longest, read_unchecked(starts, b + 1) - read_unchecked(starts, b));
  }
  return std::min(longest, std::max<std::int64_t>(total_q, 0));
}

std::int64_t most_keys(const Call& call, const Problem& problem) {
  const Tensor& keys = keys_of(call);
  if (!keys) return INT32_MAX;
  if (problem.bounds.page_size == 0) return extent(keys, 0);
  std::int64_t most = 0;
  const bool wild =
      __builtin_mul_overflow(extent(call.batch.page_table, 1), problem.bounds.page_size, &most);
  return wild ? INT32_MAX : most;
}

std::int64_t longest_keys(const Call& call, const Problem& problem) {
  const Tensor& lengths = call.batch.seqlens_k;
  if (!lengths) return problem.bounds.page_size == 0 ? extent(keys_of(call), 0) : 0;
  expect_host(lengths, "settings.max_seqlen_k", "batch.seqlens_k");
  if (!readable(lengths)) return 0;
  std::int64_t longest = 0;
  for (std::int64_t b = 0; b < entries(lengths); ++b) {
    longest = std::max(longest, read_unchecked(lengths, b));
  }
  return std::clamp<std::int64_t>(most_keys(call, problem), 0, longest);
}

// Who shares a scale, as its rank says; validation checks the extents.
Scale scale_of(const Tensor& scale, bool paged) {
  if (!scale) return Scale::None;
  if (scale.rank == 1) return scale.shape[0] == 1 ? Scale::Tensor : Scale::Head;
  return scale.rank == 2 && paged ? Scale::Page : Scale::Token;
}

bool holds_codes(const Tensor& keys) {
  return keys.dtype == DType::E4M3 || keys.dtype == DType::E2M1;
}

/// What keys are stored as; whether values are rounded no tensor tells.
Format format_of(const Tensor& keys, const Tensor& scale, const Tensor& global, bool rounded) {
  if (keys.dtype == DType::E2M1)
    return {DType::E2M1, global ? Scale::GroupTensor : Scale::Group, kGroup, rounded};
  return {keys.dtype, scale_of(scale, keys.rank == 4), 0, rounded};
}

void derive_attention(Problem& p, const Call& call, const Settings& settings) {
  if (holds_codes(call.k) || settings.kv_rounded) {
    p.attention.kv = format_of(call.k, call.k_scale, call.k_global_scale, settings.kv_rounded);
  }
  p.attention.q.storage = call.q.dtype;
  const bool bytes = call.q.dtype == DType::E4M3;
  const Tensor& out = op_traits(p.op).derives ? call.out_in : call.out;
  p.outputs.dtype = out ? out.dtype : bytes ? DType::BF16 : call.q.dtype;
  p.attention.heads_q = extent(call.q, 1);
  p.attention.head_dim = extent(call.q, 2);
  p.attention.heads_kv = extent(call.k, call.k.rank - 2);
  p.attention.value_dim = call.v ? extent(call.v, call.v.rank - 1) : extent(call.out, 2);
}

void derive_gradients(Problem& p, const Call& call, const Settings& settings) {
  const bool index = op_traits(p.op).teaches;
  const Tensor& first = index ? first_given({&call.d_index_q, &call.d_index_k})
                              : first_given({&call.dq, &call.dk, &call.dv});
  p.gradients.dtype = first ? first.dtype : index ? call.index_q.dtype : call.q.dtype;
  p.gradients.accumulate = settings.accumulate;
}

void derive_teacher(Problem& p, const Call& call, const Settings& settings) {
  p.attention.q.storage = call.q.dtype;
  p.attention.heads_q = extent(call.q, 1);
  p.attention.head_dim = extent(call.q, 2);
  p.attention.heads_kv = extent(call.k, 1);
  if (holds_codes(call.k)) p.attention.kv = Format{call.k.dtype};
  p.index.scale = settings.index_scale;
}

// Where no cache of codes is given, values stay as they are.
void derive_store(Problem& p, const Call& call, const Settings& settings) {
  const Tensor& cache = call.k_cache;
  if (cache && (holds_codes(cache) || settings.kv_rounded)) {
    const Tensor& scale = call.k_scale_cache ? call.k_scale_cache : call.k_scale;
    p.attention.kv = format_of(cache, scale, call.k_global_scale, settings.kv_rounded);
  }
  p.attention.q.storage = call.k_rows.dtype;
  p.attention.heads_kv = extent(call.k_rows, 1);
  p.attention.head_dim = extent(call.k_rows, 2);
  p.attention.value_dim = extent(call.v_rows, 2);
}

Format filter_format(const Settings& settings) {
  return {.storage = DType::I8, .scale = Scale::Page, .rotated = settings.filter_rotated};
}

void derive_index(Problem& p, const Call& call, const Settings& settings) {
  p.index.q.storage = call.index_q.dtype;
  p.index.heads = extent(call.index_q, 1);
  p.index.dim = extent(call.index_q, 2);
  p.index.heads_k = extent(call.index_k, call.index_k.rank - 2);
  if (holds_codes(call.index_k) || settings.index_k_rounded) {
    p.index.k = format_of(call.index_k, call.index_k_scale, call.index_k_global_scale,
                          settings.index_k_rounded);
  }
  if (call.index_k8) p.index.filter = filter_format(settings);
}

void derive_copy(Problem& p, const Call& call, const Settings& settings) {
  p.index.q.storage = call.index_k.dtype;
  p.index.dim = extent(call.index_k, call.index_k.rank - 1);
  p.index.heads_k = extent(call.index_k, call.index_k.rank - 2);
  p.index.filter = filter_format(settings);
  p.bounds.total_q = 0;  // rows of the pool, which no plan depends on
}

void derive_merge(Problem& p, const Call& call) {
  const Tensor first = first_input(call);
  if (p.op == Op::MergeStates) {
    p.bounds.parts = static_cast<std::int64_t>(call.part_outs.size());
    p.attention.q.storage = first.dtype;
    p.outputs.dtype = call.out ? call.out.dtype : p.attention.q.storage;
    p.attention.heads_q = extent(first, 1);
    p.attention.value_dim = extent(first, 2);
  } else {
    p.bounds.parts = static_cast<std::int64_t>(call.part_ids.size());
    p.attention.heads_kv = extent(first, 1);
  }
}

void derive_selection(Problem& p, const Call& call, const Settings& settings) {
  const Tensor& list = first_given({&call.block_ids, &call.block_ids_in});
  p.selection.topk = list ? extent(list, 2) : op_traits(p.op).teaches ? 0 : settings.topk;
  p.selection.local_blocks = settings.local_blocks;
  p.selection.init_blocks = settings.init_blocks;
  p.selection.precision = settings.precision;
  if (p.op == Op::SelectTopk) p.index.heads = extent(call.scores_in, 1);
  if (p.op == Op::InvertSelection) p.attention.heads_kv = extent(call.block_ids_in, 1);
}

}  // namespace

Problem derive_problem(Op op, const Call& call, const Settings& settings) {
  expect_sources(op, call);
  const Tensor first = first_input(call);
  const OpTraits traits = op_traits(op);
  Problem p{.op = op,
            .device = first.device,
            .causal = settings.causal,
            .bounds = {.total_q = extent(first, 0)},
            .attention = {.softmax_scale = settings.softmax_scale},
            .selection = {.block_size = settings.block_size},
            .options = settings.options};
  if (traits.attends) derive_attention(p, call, settings);
  if (traits.derives) derive_gradients(p, call, settings);
  if (traits.teaches) derive_teacher(p, call, settings);
  if (traits.indexes) derive_index(p, call, settings);
  if (traits.stores) derive_store(p, call, settings);
  if (traits.copies) derive_copy(p, call, settings);
  if (traits.merges) derive_merge(p, call);
  if (traits.selects || traits.lists || op == Op::MergeSelections)
    derive_selection(p, call, settings);
  p.outputs.lse = static_cast<bool>(call.lse);
  p.outputs.block_max = static_cast<bool>(call.block_max);
  p.outputs.chosen_scores = static_cast<bool>(call.chosen_scores);
  if (op == Op::DenseAttention) p.outputs.out = call.out || !call.block_max;
  if (traits.merges) return p;

  p.bounds.batch = count_requests(call.batch);
  const Tensor& keys = traits.stores ? call.k_cache : keys_of(call);
  if (keys.rank == 4) p.bounds.page_size = extent(keys, 1);
  if (!traits.copies) {
    p.bounds.max_seqlen_q =
        settings.max_seqlen_q != -1 ? settings.max_seqlen_q : longest_query(call, p.bounds.total_q);
  }
  p.bounds.max_seqlen_k =
      settings.max_seqlen_k != -1 ? settings.max_seqlen_k : longest_keys(call, p);
  return p;
}

}  // namespace msa::core
