// SPDX-License-Identifier: MIT
// Choosing rows by their work.
#include "testkit/sampling.h"

#include <algorithm>

#include "testkit/random.h"

namespace msa::testkit {

namespace {

constexpr std::uint64_t kSampleStream = 400;

double row_work(const Problem& p, const Request& r, std::int64_t i) {
  const auto visible = static_cast<double>(r.visible_keys(i));
  const double listed =
      std::min(visible, static_cast<double>(p.selection.topk * p.selection.block_size));
  const double index = visible * static_cast<double>(p.index.heads * p.index.dim);
  const auto attend =
      static_cast<double>(p.attention.heads_q * (p.attention.head_dim + p.attention.value_dim));
  switch (p.op) {
    case Op::DenseAttention:
      return visible * attend;
    case Op::SparseAttention:
      return listed * attend;
    case Op::MsaAttention:
      return index + listed * attend;
    case Op::BlockScores:
    case Op::SelectBlocks:
      return index;
    case Op::SelectTopk:
    case Op::MergeStates:
    case Op::MergeSelections:
    case Op::InvertSelection:
    case Op::QuantizeKv:
    case Op::QuantizeIndex:
    case Op::SparseAttentionBackward:  // of keys, too: whole calls alone
    case Op::DenseAttentionBackward:
    case Op::IndexLoss:
      break;
  }
  return 0;
}

}  // namespace

std::vector<CallRow> all_rows(const std::vector<Request>& requests, std::int64_t rows) {
  std::vector<CallRow> all(static_cast<std::size_t>(rows));
  for (std::int64_t row = 0; row < rows; ++row) all[row].row = row;
  for (const Request& r : requests) {
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
      all[r.q_begin + i].request = &r;
      all[r.q_begin + i].i = i;
    }
  }
  return all;
}

std::vector<CallRow> sample(const std::vector<CallRow>& rows, std::int64_t wanted,
                            std::uint64_t seed) {
  std::vector<CallRow> chosen{rows.front(), rows.back()};
  const Stream64 random(seed, kSampleStream);
  const auto count = static_cast<std::int64_t>(rows.size());
  for (std::int64_t n = 2; n < wanted; ++n) {
    chosen.push_back(rows[random.below(static_cast<std::uint64_t>(n), count)]);
  }
  return chosen;
}

std::int64_t num_rows(const Operands& o) {
  if (!o.part_outs.empty()) return o.part_outs[0].shape[0];
  if (!o.part_ids.empty()) return o.part_ids[0].shape[0];
  for (const Tensor* t : {&o.q, &o.index_q, &o.scores_in, &o.block_ids_in, &o.k_rows}) {
    if (*t) return t->shape[0];
  }
  return 0;
}

double work_of(const Problem& problem, const Operands& operands) {
  if (!operands.batch.cu_seqlens_q) return 0;
  double work = 0;
  for (const Request& r : requests_of(problem, operands.batch)) {
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) work += row_work(problem, r, i);
  }
  return work;
}

}  // namespace msa::testkit
