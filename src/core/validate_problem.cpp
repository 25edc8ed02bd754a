// SPDX-License-Identifier: MIT
// Which problems are legal, whatever backend may serve them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "core/fail.h"
#include "core/fields.h"
#include "core/geometry.h"
#include "core/op_traits.h"
#include "core/validate.h"

namespace msa::core {
namespace {

constexpr std::int64_t kMaxCount = INT32_MAX;  // lengths, rows and ids are int32 in the tensors

constexpr std::int64_t kMaxThreads = 1024;  // more are a slip of the caller, and libgomp exits

[[noreturn]] void reject(const char* field, const std::string& expected, const std::string& given) {
  fail(ErrorCode::InvalidArgument, field, "", expected, given);
}

void expect_range(const char* field, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value >= low && value <= high) return;
  reject(field, std::to_string(low) + " to " + std::to_string(high), std::to_string(value));
}

void expect_multiple(const char* field, std::int64_t value, std::int64_t of) {
  if (value % of == 0) return;
  reject(field, "a multiple of " + std::to_string(of), std::to_string(value));
}

void expect_divisor(const char* field, std::int64_t value, const char* of, std::int64_t whole) {
  if (whole % value == 0) return;
  reject(field, std::string("a divisor of ") + of + " " + std::to_string(whole),
         std::to_string(value));
}

void expect_float(const char* field, DType dtype) {
  if (dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16) return;
  reject(field, "f32, f16 or bf16", to_string(dtype));
}

void expect_query(const char* field, DType dtype) {
  if (dtype == DType::E4M3) return;
  if (dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16) return;
  reject(field, "f32, f16, bf16 or e4m3", to_string(dtype));
}

// Formats that no operation reads yet.
void expect_plain(const char* field, const Format& format) {
  if (format == Format{.storage = format.storage}) return;
  reject(field, "no scale", to_string(format));
}

// Four bits: every 16 elements along the dim share a scale.
void check_groups(const char* field, const Format& format) {
  const bool sixteen = format.group == kGroup && !format.rotated;
  const bool group = format.scale == Scale::Group && sixteen;
  const bool global = format.scale == Scale::GroupTensor && sixteen && !format.rounded;
  if (!group && !global) reject(field, "nvfp4, nvfp4/tensor or q8kv4", to_string(format));
}

// Codes of 8 bits with a scale that somebody shares.
void check_codes(const char* field, const Format& format, std::int64_t page_size) {
  const auto refuse = [&](const char* expected) { reject(field, expected, to_string(format)); };
  if (format.group != 0) refuse("e4m3 without a group");
  if (format.rounded) refuse("e4m3 that is not rounded");
  if (format.rotated) refuse("e4m3 that is not rotated");
  if (format.scale > Scale::Token) refuse("e4m3 with a scale of none, tensor, head, page or token");
  if (format.scale == Scale::Page && page_size == 0) {
    refuse("no scale of a page, as keys are ragged");
  }
}

// Keys and values: as queries, e4m3, or e2m1.
void check_kv(const Problem& p) {
  const std::optional<Format>& kv = p.attention.kv;
  if (!kv || *kv == p.attention.q) return;
  if (kv->storage == DType::E2M1) {
    check_groups("attention.kv", *kv);
    expect_multiple("head_dim", p.attention.head_dim, kGroup);
    if (p.outputs.out) expect_multiple("value_dim", p.attention.value_dim, kGroup);
    return;
  }
  if (kv->storage != DType::E4M3) {
    const bool same = p.attention.q.storage == DType::E4M3;
    reject("attention.kv",
           (same ? "" : to_string(p.attention.q) + ", as q, or ") + "e4m3, nvfp4 or q8kv4",
           to_string(*kv));
  }
  check_codes("attention.kv", *kv, p.bounds.page_size);
}

// Index keys: as index queries, e4m3, or e2m1.
void check_index_k(const Problem& p) {
  const std::optional<Format>& k = p.index.k;
  if (!k || *k == p.index.q) return;
  if (k->storage == DType::E2M1) {
    check_groups("index.k", *k);
    return expect_multiple("index_dim", p.index.dim, kGroup);
  }
  if (k->storage != DType::E4M3) {
    const bool same = p.index.q.storage == DType::E4M3;
    reject("index.k", (same ? "" : to_string(p.index.q) + ", as q, or ") + "e4m3, nvfp4 or q8kv4",
           to_string(*k));
  }
  check_codes("index.k", *k, p.bounds.page_size);
}

// The copy of index keys that spares reading most of them: codes of 8 bits with bounds of a page.
void check_filter(const Problem& p) {
  const std::optional<Format>& filter = p.index.filter;
  if (!filter) return;
  if (!op_traits(p.op).selects && !op_traits(p.op).copies) {
    reject("index.filter", std::string("none for ") + to_string(p.op), to_string(*filter));
  }
  Format served{DType::I8, Scale::Page};
  served.rotated = filter->rotated;
  if (*filter != served) reject("index.filter", to_string(served), to_string(*filter));
  if (filter->rotated && (p.index.dim > kMaxCodedDim || (p.index.dim & (p.index.dim - 1)) != 0)) {
    reject("index_dim",
           "a power of two of at most " + std::to_string(kMaxCodedDim) +
               " where the filter is rotated",
           std::to_string(p.index.dim));
  }
  const Format keys = index_k_format(p);
  if (keys.storage == DType::E4M3 || keys.storage == DType::E2M1) {
    reject("index.filter", "none beside index keys in " + to_string(keys), to_string(*filter));
  }
}

// Bytes of a tensor with these extents, 4 for each element at most, must be a number.
void expect_product(const char* field, std::initializer_list<std::int64_t> extents) {
  std::int64_t bytes = 4;
  std::string given;
  bool fits = true;
  for (const std::int64_t extent : extents) {
    fits = fits && !__builtin_mul_overflow(bytes, std::max<std::int64_t>(extent, 1), &bytes);
    given += (given.empty() ? "" : " * ") + std::to_string(extent);
  }
  if (!fits) reject(field, "a tensor of fewer than 2^61 elements", given);
}

void check_out_dtype(const Problem& p) {
  if (p.attention.q.storage == DType::E4M3) return expect_float("out_dtype", p.outputs.dtype);
  if (p.outputs.dtype == p.attention.q.storage || p.outputs.dtype == DType::F32) return;
  const std::string own = p.attention.q.storage == DType::F32
                              ? ""
                              : std::string(to_string(p.attention.q.storage)) + " or ";
  reject("out_dtype", own + "f32", to_string(p.outputs.dtype));
}

void check_batch(const Problem& p) {
  expect_range("batch", p.bounds.batch, 0, kMaxCount - 1);
  expect_range("max_seqlen_q", p.bounds.max_seqlen_q, 0, kMaxCount);
  expect_range("max_seqlen_k", p.bounds.max_seqlen_k, 0, kMaxCount);
  expect_range("page_size", p.bounds.page_size, 0, kMaxCount);
  expect_multiple("page_size", p.bounds.page_size, 16);
  expect_range("block_size", p.selection.block_size, 16, 256);
  expect_multiple("block_size", p.selection.block_size, 16);
}

void expect_scale(const char* field, const std::optional<float>& scale) {
  if (scale && !std::isfinite(*scale)) reject(field, "a finite number", std::to_string(*scale));
}

void check_attention(const Problem& p) {
  expect_query("dtype", p.attention.q.storage);
  expect_plain("attention.q", p.attention.q);
  check_kv(p);
  expect_range("heads_q", p.attention.heads_q, 1, kMaxCount);
  expect_range("heads_kv", p.attention.heads_kv, 1, kMaxCount);
  expect_divisor("heads_kv", p.attention.heads_kv, "heads_q", p.attention.heads_q);
  expect_range("head_dim", p.attention.head_dim, 1, kMaxCount);
  expect_product("total_q", {p.bounds.total_q, p.attention.heads_q, p.attention.head_dim});
  if (p.outputs.out) {
    check_out_dtype(p);
    expect_range("value_dim", p.attention.value_dim, 1, kMaxCount);
    expect_product("total_q", {p.bounds.total_q, p.attention.heads_q, p.attention.value_dim});
  }
  expect_scale("softmax_scale", p.attention.softmax_scale);
}

// What has gradients: ragged keys, stored as queries are.
void check_plain_keys(const Problem& p, const char* name, const Format& q,
                      const std::optional<Format>& keys) {
  if (keys && *keys != q) {
    reject(name, to_string(q) + ", as q, since a gradient of codes is none", to_string(*keys));
  }
  if (p.bounds.page_size != 0) {
    reject("page_size", std::string("0 for ") + to_string(p.op) + ", as keys are ragged",
           std::to_string(p.bounds.page_size));
  }
}

void check_gradients(const Problem& p) {
  expect_float("dtype", p.attention.q.storage);
  check_plain_keys(p, "attention.kv", p.attention.q, p.attention.kv);
  const Format& q = op_traits(p.op).teaches ? p.index.q : p.attention.q;
  if (op_traits(p.op).teaches) {
    expect_float("index_dtype", q.storage);
    check_plain_keys(p, "index.k", q, p.index.k);
  }
  if (p.gradients.dtype == q.storage || p.gradients.dtype == DType::F32) return;
  reject("gradients.dtype", q.storage == DType::F32 ? "f32" : to_string(q) + " or f32",
         to_string(p.gradients.dtype));
}

// Of index_loss, beside its index: attention without values.
void check_teacher(const Problem& p) {
  expect_plain("attention.q", p.attention.q);
  expect_range("heads_q", p.attention.heads_q, 1, kMaxCount);
  expect_range("heads_kv", p.attention.heads_kv, 1, kMaxCount);
  expect_divisor("heads_kv", p.attention.heads_kv, "heads_q", p.attention.heads_q);
  expect_range("head_dim", p.attention.head_dim, 1, kMaxCount);
  expect_product("total_q", {p.bounds.total_q, p.attention.heads_q, p.attention.head_dim});
  expect_scale("softmax_scale", p.attention.softmax_scale);
  expect_scale("index_scale", p.index.scale);
  if (p.index.heads != p.attention.heads_kv) {
    reject("index_heads", "heads_kv " + std::to_string(p.attention.heads_kv),
           std::to_string(p.index.heads));
  }
}

void check_store(const Problem& p) {
  expect_range("batch", p.bounds.batch, 0, kMaxCount - 1);
  expect_range("page_size", p.bounds.page_size, 0, kMaxCount);
  expect_multiple("page_size", p.bounds.page_size, 16);
  expect_range("max_seqlen_q", p.bounds.max_seqlen_q, 0, kMaxCount);
  expect_range("max_seqlen_k", p.bounds.max_seqlen_k, 0, kMaxCount);
  expect_float("dtype", p.attention.q.storage);
  expect_plain("attention.q", p.attention.q);
  check_kv(p);
  expect_range("heads_kv", p.attention.heads_kv, 1, kMaxCount);
  for (const auto& [name, dim] : {std::pair{"head_dim", p.attention.head_dim},
                                  std::pair{"value_dim", p.attention.value_dim}}) {
    expect_range(name, dim, 1, kMaxCount);
    expect_product("total_q", {p.bounds.total_q, p.attention.heads_kv, dim});
  }
}

void check_index(const Problem& p) {
  expect_query("index_dtype", p.index.q.storage);
  expect_plain("index.q", p.index.q);
  check_index_k(p);
  check_filter(p);
  expect_range("index_heads_k", p.index.heads_k, 1, kMaxCount);
  expect_divisor("index_heads_k", p.index.heads_k, "index_heads", p.index.heads);
  expect_range("index_dim", p.index.dim, 1, kMaxCount);
  expect_product("total_q", {p.bounds.total_q, p.index.heads, p.index.dim});
}

// Index keys alone: their format stands where that of index queries does.
void check_copy(const Problem& p) {
  expect_range("batch", p.bounds.batch, 0, kMaxCount - 1);
  expect_range("max_seqlen_k", p.bounds.max_seqlen_k, 0, kMaxCount);
  expect_range("page_size", p.bounds.page_size, 0, kMaxCount);
  expect_multiple("page_size", p.bounds.page_size, 16);
  expect_float("index_dtype", p.index.q.storage);
  expect_plain("index.q", p.index.q);
  if (p.index.k && *p.index.k != p.index.q) {
    reject("index.k", to_string(p.index.q) + ", as index.q", to_string(*p.index.k));
  }
  if (!p.index.filter) reject("index.filter", "the format of the copy", "none");
  check_filter(p);
  expect_range("index_heads_k", p.index.heads_k, 1, kMaxCount);
  expect_range("index_dim", p.index.dim, 1, kMaxCount);
}

void check_precision(const Problem& p) {
  const Precision precision = p.selection.precision;
  if (precision > Precision::Fast) {
    reject("precision", "exact or fast", std::to_string(static_cast<int>(precision)));
  }
  const bool filtered = op_traits(p.op).indexes && p.index.filter;
  if (precision == Precision::Fast && !filtered) {
    reject("precision", "exact, as there is no filter", to_string(precision));
  }
  if (precision == Precision::Fast && p.index.dim > kMaxCodedDim) {
    reject("index_dim", "at most " + std::to_string(kMaxCodedDim) + " where precision is fast",
           std::to_string(p.index.dim));
  }
}

void check_selection(const Problem& p) {
  check_precision(p);
  expect_range("local_blocks", p.selection.local_blocks, 0, p.selection.topk);
  expect_range("init_blocks", p.selection.init_blocks, 0, p.selection.topk);
  if (p.selection.init_blocks + p.selection.local_blocks > p.selection.topk) {
    reject(
        "init_blocks",
        "init_blocks + local_blocks of at most topk " + std::to_string(p.selection.topk),
        std::to_string(p.selection.init_blocks) + " + " + std::to_string(p.selection.local_blocks));
  }
}

void check_merge(const Problem& p) {
  expect_range("parts", p.bounds.parts, 1, kMaxParts);
  if (p.op == Op::MergeSelections) {
    expect_range("heads_kv", p.attention.heads_kv, 1, kMaxCount);
    expect_range("topk", p.selection.topk, 1, kMaxTopk);
    return expect_product("total_q", {p.bounds.total_q, p.attention.heads_kv, kMaxTopk});
  }
  expect_float("dtype", p.attention.q.storage);
  check_out_dtype(p);
  expect_range("heads_q", p.attention.heads_q, 1, kMaxCount);
  expect_range("value_dim", p.attention.value_dim, 1, kMaxCount);
  expect_product("total_q", {p.bounds.total_q, p.attention.heads_q, p.attention.value_dim});
}

// An output that the operation does not have.
void expect_flag_off(const Problem& p, const char* field, bool flag, bool allowed) {
  if (flag && !allowed) reject(field, std::string("false for ") + to_string(p.op), "true");
}

void check_flags(const Problem& p, const OpTraits& traits) {
  const bool dense = p.op == Op::DenseAttention;
  expect_flag_off(p, "lse", p.outputs.lse,
                  (traits.attends && !traits.derives) || p.op == Op::MergeStates);
  expect_flag_off(p, "block_max", p.outputs.block_max, dense);
  expect_flag_off(
      p, "chosen_scores", p.outputs.chosen_scores,
      p.op == Op::SelectTopk || p.op == Op::SelectBlocks || p.op == Op::MergeSelections);
  if (p.outputs.out) return;
  if (!dense) reject("output", std::string("true for ") + to_string(p.op), "false");
  if (p.outputs.lse) reject("lse", "false where output is false", "true");
  if (!p.outputs.block_max) reject("output", "true where block_max is false", "false");
}

void check_scores_size(const Problem& p) {
  const std::int64_t blocks = ceil_div(p.bounds.max_seqlen_k, p.selection.block_size);
  if (p.op == Op::SelectTopk || p.op == Op::BlockScores) {
    expect_product("max_seqlen_k", {p.bounds.total_q, p.index.heads, blocks});
  }
  if (p.outputs.block_max)
    expect_product("max_seqlen_k", {p.bounds.total_q, p.attention.heads_q, blocks});
}

void check_block_lists(const Problem& p, const OpTraits& traits) {
  expect_range("topk", p.selection.topk, traits.teaches ? 0 : 1, kMaxTopk);
  if (traits.selects) check_selection(p);
  const std::int64_t heads = traits.selects ? p.index.heads : p.attention.heads_kv;
  expect_product("total_q", {p.bounds.total_q, heads, p.selection.topk});
  if (p.op == Op::MsaAttention && p.index.heads != p.attention.heads_kv) {
    reject("index_heads", "heads_kv " + std::to_string(p.attention.heads_kv),
           std::to_string(p.index.heads));
  }
  if (p.op == Op::InvertSelection && p.bounds.total_q * p.selection.topk > kMaxCount) {
    reject("total_q", "total_q * topk of at most 2147483647, as row_ptr is int32",
           std::to_string(p.bounds.total_q) + " * " + std::to_string(p.selection.topk));
  }
}

void check_op(const Problem& p) {
  if (p.op > kLastOp) {
    reject("op", "an operation", std::to_string(static_cast<int>(p.op)));
  }
}

void check_device(const Problem& p) {
  const bool known = p.device.type == DeviceType::Cpu || p.device.type == DeviceType::Cuda;
  if (!known || p.device.index < 0 || (p.device.type == DeviceType::Cpu && p.device.index != 0)) {
    reject("device", "cpu or cuda:N", to_string(p.device));
  }
}

}  // namespace

void validate_problem(const Problem& p) {
  check_op(p);
  check_device(p);
  const OpTraits traits = op_traits(p.op);
  expect_range("options.threads", p.options.threads, 0, kMaxThreads);
  expect_range("total_q", p.bounds.total_q, 0, kMaxCount);
  check_flags(p, traits);
  if (traits.merges) return check_merge(p);
  if (traits.stores) return check_store(p);
  if (traits.copies) return check_copy(p);
  check_batch(p);
  if (traits.derives) check_gradients(p);
  if (traits.teaches) check_teacher(p);
  if (traits.attends) check_attention(p);
  if (traits.indexes || traits.selects) expect_range("index_heads", p.index.heads, 1, kMaxCount);
  if (traits.indexes) check_index(p);
  if (p.op == Op::InvertSelection) expect_range("heads_kv", p.attention.heads_kv, 1, kMaxCount);
  if (traits.selects || traits.lists) check_block_lists(p, traits);
  check_scores_size(p);
}

}  // namespace msa::core
