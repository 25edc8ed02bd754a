// SPDX-License-Identifier: MIT
#include "cuda/attend_stage.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/contents.h"
#include "core/fields.h"
#include "cuda/batch.h"
#include "cuda/common/attend/combine.h"

namespace msa::cuda {
namespace {

std::string shape_rejects(const Problem& p) {
  if (p.attention.q.storage != DType::BF16 && p.attention.q.storage != DType::F16) {
    return std::string("the kernels take bf16 and f16, not ") + to_string(p.attention.q.storage);
  }
  const Format kv = core::kv_format(p);
  const bool codes = kv.storage == DType::E4M3 || kv.storage == DType::E2M1;
  if (kv != p.attention.q && !codes)
    return "the kernels take keys and values stored as queries are, as e4m3 or as e2m1, not " +
           to_string(kv);
  if (codes && p.attention.head_dim != 128)
    return std::string("head_dim is 128 here where keys and values are ") + to_string(kv.storage) +
           ", not " + std::to_string(p.attention.head_dim);
  if (p.attention.head_dim != 64 && p.attention.head_dim != 128)
    return "head_dim is 64 or 128 here, not " + std::to_string(p.attention.head_dim);
  if (p.attention.value_dim != p.attention.head_dim)
    return "value_dim equals head_dim here, not " + std::to_string(p.attention.value_dim);
  if (p.attention.heads_q / p.attention.heads_kv > 64)
    return "at most 64 query heads share a KV head, not " +
           std::to_string(p.attention.heads_q / p.attention.heads_kv);
  if (!(scale_of(p) > 0.0f) || std::isinf(scale_of(p)))
    return "softmax_scale is finite and above 0 here";
  if (p.attention.heads_kv > kMaxGridYZ)
    return "at most 65535 KV heads, not " + std::to_string(p.attention.heads_kv);
  if (p.bounds.total_q > std::numeric_limits<int>::max() - 128)
    return "at most 2^31 - 129 query rows";
  if (p.bounds.total_q * p.attention.heads_kv >= std::int64_t{1} << 31)
    return "at most 2^31 pairs of a query row and a KV head";
  if (p.bounds.max_seqlen_k >= 1 << 30) return "requests hold fewer than 2^30 keys";
  if (p.bounds.batch >= 1 << 23) return "fewer than 2^23 requests";
  return "";
}

/// Splits that end `items` tiles of `steps` blocks soonest: rounds of CTAs times the steps of one
/// item, and what a split costs beside its steps. Looks at bounds only.
int best_splits(std::int64_t items, std::int64_t steps, std::int64_t ctas, const Tuning& tuning) {
  std::int64_t best = 1;
  std::int64_t best_cost = std::numeric_limits<std::int64_t>::max();
  for (std::int64_t splits = 1; splits <= std::min(tuning.most_splits, steps); ++splits) {
    const std::int64_t rounds = (items * splits + ctas - 1) / ctas;
    const std::int64_t cost = rounds * ((steps + splits - 1) / splits + tuning.item_steps) +
                              (splits > 1 ? tuning.combine_steps + splits / 4 : 0);
    if (cost < best_cost) {
      best = splits;
      best_cost = cost;
    }
  }
  return static_cast<int>(best);
}

}  // namespace

std::int64_t key_bytes(const Problem& p) {
  return p.bounds.max_seqlen_k * p.attention.heads_kv *
         (p.attention.head_dim + p.attention.value_dim) *
         bits_of(storage_of(core::kv_format(p).storage)) / 8;
}

float scale_of(const Problem& problem) {
  return problem.attention.softmax_scale.value_or(
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(problem.attention.head_dim))));
}

float scale_log2_of(const Problem& problem) {
  constexpr double kLog2e = 1.4426950408889634;
  return static_cast<float>(scale_of(problem) * kLog2e);
}

common::decode::AttendParams mended_rows(const common::attend::Params& params,
                                         const core::Call& call, bool lists,
                                         const Tensor& block_ids) {
  common::decode::AttendParams rows{.select = {.batch = params.batch, .records = params.requests},
                                    .q = make_rows<const void>(call.q),
                                    .to = params.to,
                                    .heads_kv = params.heads_kv,
                                    .group = params.group,
                                    .tiles = common::decode::head_tiles(params.group),
                                    .scale_log2 = params.scale_log2,
                                    .k_scales = params.k_scales,
                                    .v_scales = params.v_scales};
  if (!lists) return rows;
  rows.blocks = common::decode::Blocks::Listed;
  rows.lists = make_lists(block_ids);
  return rows;
}

namespace attend = common::attend;

attend::ListParams lists_of(const attend::Params& params, const Tensor& block_ids) {
  return {.batch = params.batch,
          .requests = params.requests,
          .tiles = params.tiles,
          .num_tiles = params.num_tiles,
          .tile_begin = params.tile_begin,
          .tile_limit = params.tile_limit,
          .tokens_per_tile = params.tokens_per_tile,
          .heads_kv = params.heads_kv,
          .lists = make_lists(block_ids),
          .headers = const_cast<attend::ListHeader*>(params.list_headers),
          .entries = const_cast<attend::ListEntry*>(params.list_entries)};
}

template <class Kernels>
std::string AttendStageOf<Kernels>::rejects(const Problem& problem, bool lists) {
  if (std::string why = shape_rejects(problem); !why.empty()) return why;
  if (lists && problem.selection.block_size != 64 && problem.selection.block_size != 128) {
    return "block_size is 64 or 128 here, not " + std::to_string(problem.selection.block_size);
  }
  if (lists && problem.selection.topk > attend::kMaxTopk)
    return "topk is at most 64 here, not " + std::to_string(problem.selection.topk);
  return Kernels::rejects(problem, lists);
}

template <class Kernels>
int AttendStageOf<Kernels>::tokens_of_tile(const Problem& problem, bool lists) {
  const std::int64_t group = problem.attention.heads_q / problem.attention.heads_kv;
  const std::int64_t most = lists ? attend::kMaxUnionTokens : Kernels::kTileRows;
  return static_cast<int>(std::min(most, Kernels::kTileRows / group));
}

template <class Kernels>
AttendStageOf<Kernels>::AttendStageOf(const Problem& problem, const GpuInfo& gpu, bool lists,
                                      Layout& layout)
    : tokens_per_tile_(tokens_of_tile(problem, lists)),
      heads_kv_(problem.attention.heads_kv),
      unpacks_(Kernels::unpacks(problem, lists, tokens_per_tile_, tuning_for(gpu))),
      kernels_(problem, gpu, lists, unpacks_) {
  const Tuning tuning = tuning_for(gpu);
  max_tiles_ = static_cast<int>(
      common::prologue::max_tiles(problem.bounds.total_q, problem.bounds.batch, tokens_per_tile_));
  chunk_tiles_ = std::max(max_tiles_, 1);
  tiles_ = layout.take<common::prologue::TileRecord>(max_tiles_);
  num_tiles_ = layout.take<int>(1);
  const std::int64_t entries = tokens_per_tile_ * problem.selection.topk;  // of one list
  if (lists) {
    const std::int64_t tile_bytes =
        problem.attention.heads_kv * entries * static_cast<std::int64_t>(sizeof(attend::ListEntry));
    chunk_tiles_ =
        static_cast<int>(std::clamp<std::int64_t>(tuning.list_bytes / tile_bytes, 1, chunk_tiles_));
  }
  suspects_ =
      layout.take<int>(1 + suspect_words(problem.bounds.total_q * problem.attention.heads_kv));
  if (lists) first_blocks_ = layout.take<std::int64_t>(problem.bounds.batch + 1);
  run_begin_ = layout.bytes();
  if (unpacks_) unpack_.emplace(problem, layout, has_column_scales(core::kv_format(problem)));
  heads_outermost_ =
      lists || key_bytes(unpack_ ? UnpackStage::unpacked(problem) : problem) > tuning.cached_bytes;
  const std::int64_t visible =
      (problem.bounds.max_seqlen_k + kernels_.block() - 1) / kernels_.block();
  const std::int64_t longest = problem.bounds.max_seqlen_q;
  // Neighbours share half.
  const std::int64_t listed = std::min<std::int64_t>(longest, 2) * problem.selection.topk;
  const std::int64_t steps = lists ? std::min(visible, listed) : visible;
  // Of requests of one tile no other tile has steps: the rest is padding.
  const bool one_tile = lists && longest <= tokens_per_tile_;
  const std::int64_t tiles =
      one_tile ? std::min<std::int64_t>(max_tiles_, problem.bounds.batch) : max_tiles_;
  const std::int64_t items = tiles * problem.attention.heads_kv;
  const std::int64_t ctas = std::max(1, kernels_.ctas());
  if (items < tuning.split_waves * ctas) splits_ = best_splits(items, steps, ctas, tuning);
  if (splits_ > 1) {
    part_out_ = layout.take<float>(splits_ * problem.bounds.total_q * problem.attention.heads_q *
                                   problem.attention.head_dim);
    part_lse_ = layout.take<float>(splits_ * problem.bounds.total_q * problem.attention.heads_q);
  }
  if (!lists) return;
  headers_ = layout.take<attend::ListHeader>(problem.attention.heads_kv * chunk_tiles_);
  entries_ = layout.take<attend::ListEntry>(problem.attention.heads_kv * chunk_tiles_ * entries);
  // Nor do such tiles share keys.
  if (Kernels::kKeysOutermost && splits_ == 1 && !one_tile &&
      KvOuterStage::serves(problem, tuning, tokens_per_tile_, chunk_tiles_))
    kvouter_.emplace(problem, tuning, tokens_per_tile_, chunk_tiles_, layout);
}

template <class Kernels>
int AttendStageOf<Kernels>::launches(int tiles) const {
  return (tiles + chunk_tiles_ - 1) / chunk_tiles_;
}

template <class Kernels>
std::string AttendStageOf<Kernels>::decisions() const {
  const bool lists = kernels_.walks_lists();
  return std::string("attend ") + (lists ? "union" : "dense") + "\nattend_tile " +
         std::to_string(tokens_per_tile_) + " tokens x group, " + std::to_string(kernels_.block()) +
         " keys\nattend_splits " + std::to_string(splits_) + "\nattend_launches " +
         std::to_string(launches(max_tiles_)) + "\nattend_heads " +
         (heads_outermost_ ? "outermost" : "innermost") + "\nattend_unpacks " +
         (unpack_ ? "yes" : "no") + "\nattend_keys_outermost " +
         (kvouter_ ? "beyond " + std::to_string(kvouter_->longest_list()) + " blocks a list"
                   : "no") +
         "\n";
}

template <class Kernels>
void AttendStageOf<Kernels>::ask(common::prologue::Params& front, void* workspace) const {
  const BatchParams& batch = front.batch;
  front.tiles[0] = {.records = tiles_.in(workspace),
                    .most = static_cast<int>(
                        common::prologue::max_tiles(batch.total_q, batch.batch, tokens_per_tile_)),
                    .tokens = tokens_per_tile_,
                    .count = num_tiles_.in(workspace)};
  if (kvouter_) front.first_blocks = first_blocks_.in(workspace);
  const std::span<int> counters = suspects(batch.total_q, workspace);
  front.counters[0] = {.data = counters.data(), .count = static_cast<int>(counters.size())};
}

template <class Kernels>
std::span<int> AttendStageOf<Kernels>::suspects(std::int64_t rows, void* workspace) const {
  return {suspects_.in(workspace), static_cast<std::size_t>(1 + suspect_words(rows * heads_kv_))};
}

template <class Kernels>
void AttendStageOf<Kernels>::run(const Problem& problem, const core::Call& call,
                                 const Tensor& block_ids, const common::prologue::Params& front,
                                 void* workspace, cudaStream_t stream) const {
  const BatchParams& batch = front.batch;
  const attend::Params whole = attend_params(problem, call, front, workspace);
  attend::Params params = whole;
  if (splits_ > 1) {
    const std::int64_t rows = batch.total_q * problem.attention.heads_q;
    params.splits = splits_;
    params.to = {
        .out = {part_out_.in(workspace), problem.attention.heads_q * problem.attention.head_dim,
                problem.attention.head_dim},
        .f32 = 1,
        .lse = {part_lse_.in(workspace), problem.attention.heads_q, 1}};
    params.stride_out_split = rows * problem.attention.head_dim;
    params.stride_lse_split = rows;
  }
  core::Call items = call;
  common::prologue::Params items_front = front;
  const bool lists = kernels_.walks_lists();
  const int tiles = front.tiles[0].most;
  for (int begin = 0; begin < tiles; begin += chunk_tiles_) {
    params.tile_begin = begin;
    params.tile_limit = std::min(chunk_tiles_, tiles - begin);
    if (kvouter_) params.longest_list = kvouter_->longest_list();
    if (lists) attend::launch_lists(lists_of(params, block_ids), stream);
    // Behind the first lists, as both run beside each other.
    if (begin == 0 && unpack_) unpack_->run(problem, items, items_front, workspace, stream, lists);
    attend::Params of_items = params;
    of_items.batch = items_front.batch;
    if (unpack_ && unpack_->gives_key_scales()) {
      of_items.k_scales = UnpackStage::key_scales_of(items.k_scale);
      of_items.v_scales = UnpackStage::key_scales_of(items.v_scale);
    }
    kernels_.attend(of_items, items, stream);
    if (kvouter_) {
      kvouter_->run(problem, call, block_ids, params, front.first_blocks, kernels_.ctas(),
                    workspace, stream);
    }
  }
  if (splits_ > 1) run_combine(problem, params, whole, stream);
  kernels_.mend(problem, call, block_ids, whole, stream);
}

template <class Kernels>
attend::Params AttendStageOf<Kernels>::attend_params(const Problem& problem, const core::Call& call,
                                                     const common::prologue::Params& front,
                                                     void* workspace) const {
  attend::Params params{
      .batch = front.batch,
      .requests = front.requests,
      .tiles = front.tiles[0].records,
      .num_tiles = front.tiles[0].count,
      .tokens_per_tile = tokens_per_tile_,
      .group = static_cast<int>(problem.attention.heads_q / problem.attention.heads_kv),
      .heads_kv = static_cast<int>(problem.attention.heads_kv),
      .heads_outermost = heads_outermost_,
      .list_headers = headers_.in(workspace),
      .list_entries = entries_.in(workspace),
      .list_capacity = tokens_per_tile_ * static_cast<int>(problem.selection.topk)};
  params.to = make_rows_out(call.out, call.lse);
  params.scale_log2 = scale_log2_of(problem);
  int* const suspects = suspects_.in(workspace);
  params.suspects = {suspects, reinterpret_cast<unsigned*>(suspects + 1)};
  params.k_scales = make_scales(problem, core::kv_format(problem), call.k_scale);
  params.v_scales = make_scales(problem, core::kv_format(problem), call.v_scale);
  params.column_scales = has_column_scales(core::kv_format(problem)) ? 1 : 0;
  return params;
}

template <class Kernels>
void AttendStageOf<Kernels>::run_combine(const Problem& problem, const attend::Params& parts,
                                         const attend::Params& whole, cudaStream_t stream) const {
  attend::launch_combine({.splits = splits_,
                          .rows = whole.batch.total_q * problem.attention.heads_q,
                          .heads = static_cast<int>(problem.attention.heads_q),
                          .head_dim = static_cast<int>(problem.attention.head_dim),
                          .part_out = static_cast<const float*>(parts.to.out.data),
                          .part_lse = parts.to.lse.data,
                          .storage = storage_of(problem.attention.q.storage),
                          .to = whole.to},
                         stream);
}

template class AttendStageOf<Sm90Attention>;
template class AttendStageOf<MmaAttention>;

}  // namespace msa::cuda
