// SPDX-License-Identifier: MIT
// The steps from a case to its tensors, one group of tensors each; generate.cpp calls them in
// order.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "testkit/operands.h"
#include "testkit/random.h"
#include "testkit/requests.h"
#include "testkit/tensor_maker.h"

namespace msa::testkit {

/// What the steps share: the case, where tensors come from and go to, and what the batch says.
struct Making {
  const Case& spec;
  const Problem& problem;
  TensorMaker& tensors;
  Operands& operands;
  std::vector<Request> requests{};
  /// Rows of ragged keys, or pages.
  std::int64_t key_extent = 0;
  /// One past the largest position.
  std::int64_t longest = 0;
};

void make_batch(Making& making);
void make_index(Making& making);
/// The 8-bit copy of the index keys and its bounds.
void make_filter(Making& making);
void make_attention(Making& making);
/// What a forward pass wrote, and the gradients that arrive at it.
void make_gradients(Making& making);
/// Lists of block ids, as sparse attention and inversion take them.
void make_block_ids(Making& making);
/// Scores, as select_topk takes them.
void make_scores(Making& making);
void make_part_states(Making& making);
void make_part_selections(Making& making);
/// New keys and values, as quantize_kv takes them, and the scales that it is given.
void make_rows(Making& making);
void make_outputs(Making& making);

inline bool derives(Op op) {
  return op == Op::SparseAttentionBackward || op == Op::DenseAttentionBackward ||
         op == Op::IndexLoss;
}
inline bool takes_lists(Op op) {
  return op == Op::SparseAttention || op == Op::SparseAttentionBackward ||
         op == Op::InvertSelection || op == Op::IndexLoss;
}
inline bool reads_attention_keys(Op op) {
  return op == Op::DenseAttention || op == Op::SparseAttention || op == Op::MsaAttention ||
         derives(op);
}
inline bool reads_index_keys(Op op) {
  return op == Op::BlockScores || op == Op::SelectBlocks || op == Op::MsaAttention ||
         op == Op::IndexLoss;
}
inline bool takes_filter(Op op) { return op == Op::SelectBlocks || op == Op::MsaAttention; }
inline bool stores_keys(Op op) { return op == Op::QuantizeKv; }
inline bool copies_index(Op op) { return op == Op::QuantizeIndex; }
/// Whether quantize_kv works out the scales of a format.
inline bool computes_scales(const Format& format) {
  return format.scale == Scale::Token || format.storage == DType::E2M1;
}
inline bool is_merge(Op op) { return op == Op::MergeStates || op == Op::MergeSelections; }
inline bool is_hostile(const Case& spec) { return spec.hostile != Hostile::None; }

/// Position of a request's first query, given or not.
inline std::int64_t offset_of(const Lengths& r) {
  return r.q_offset.value_or(r.key_offset + r.seqlen_k - r.seqlen_q);
}

/// Blocks that scores have room for: the planned bound's, and with slack two more.
std::int64_t score_blocks(const Case& spec);

/// What index tensors hold where nothing may be read.
constexpr std::array<std::int32_t, 4> kGarbage{std::numeric_limits<std::int32_t>::min(),
                                               std::numeric_limits<std::int32_t>::max(), -2,
                                               1 << 30};

/// One element of the row (or all of them) becomes NaN or an infinity.
void spoil_row(const Stream64& random, std::uint64_t counter, std::vector<float>& row);

/// fn(i) for `count` rows. Below some work threads cost more than they bring.
template <class Fn>
void for_rows(std::int64_t count, std::int64_t elements_of_row, const Fn& fn) {
  constexpr std::int64_t kParallelElements = 1 << 16;
#pragma omp parallel for schedule(static) if (count * elements_of_row > kParallelElements)
  for (std::int64_t i = 0; i < count; ++i) fn(i);
}

}  // namespace msa::testkit
