// SPDX-License-Identifier: MIT
// What each operation uses is written out here on its own, not derived from the library's tables.
#include "testkit/nonsense.h"

#include <limits>

namespace msa::testkit {
namespace {

constexpr std::int64_t kNonsense = -7;
constexpr Format kNoFormat{.storage = DType::E2M1, .group = kNonsense};

bool is_backward_pass(Op op) {
  return op == Op::SparseAttentionBackward || op == Op::DenseAttentionBackward;
}
bool attends(Op op) {
  return op == Op::DenseAttention || op == Op::SparseAttention || op == Op::MsaAttention ||
         is_backward_pass(op);
}
bool scores(Op op) {
  return op == Op::BlockScores || op == Op::SelectBlocks || op == Op::MsaAttention ||
         op == Op::IndexLoss;
}
bool selects(Op op) {
  return op == Op::SelectTopk || op == Op::SelectBlocks || op == Op::MsaAttention;
}

void spoil_attention(Problem& p) {
  if (attends(p.op)) return;
  Attention& a = p.attention;
  if (p.op == Op::IndexLoss) {
    a.value_dim = kNonsense;
    p.outputs.dtype = DType::I32;
    return;
  }
  if (p.op == Op::QuantizeKv) {
    a.heads_q = kNonsense;
    a.softmax_scale = std::numeric_limits<float>::quiet_NaN();
    p.outputs.dtype = DType::I32;
    return;
  }
  if (p.op == Op::QuantizeIndex) a.q = kNoFormat;
  const bool states = p.op == Op::MergeStates;
  const bool lists = p.op == Op::MergeSelections || p.op == Op::InvertSelection;
  a.kv = kNoFormat;
  a.head_dim = kNonsense;
  a.softmax_scale = std::numeric_limits<float>::quiet_NaN();
  if (!lists) a.heads_kv = kNonsense;
  if (states) return;
  a.q = kNoFormat;
  a.heads_q = a.value_dim = kNonsense;
  p.outputs.dtype = DType::I32;
}

void spoil_index(Problem& p) {
  if (scores(p.op)) return;
  if (p.op == Op::QuantizeIndex) {
    p.index.heads = kNonsense;
    return;
  }
  p.index.q = kNoFormat;
  p.index.k = kNoFormat;
  p.index.filter = kNoFormat;
  p.index.heads_k = p.index.dim = kNonsense;
  if (!selects(p.op)) p.index.heads = kNonsense;
}

void spoil_selection(Problem& p) {
  Selection& s = p.selection;
  if (!selects(p.op)) s.local_blocks = s.init_blocks = kNonsense;
  const bool merges = p.op == Op::MergeStates || p.op == Op::MergeSelections;
  const bool stores = p.op == Op::QuantizeKv || p.op == Op::QuantizeIndex;
  if (merges || stores) s.block_size = kNonsense;
  const bool dense = p.op == Op::DenseAttention || p.op == Op::DenseAttentionBackward;
  if (dense || p.op == Op::BlockScores || p.op == Op::MergeStates || stores) {
    s.topk = kNonsense;
  }
  Bounds& b = p.bounds;
  if (merges) b.batch = b.max_seqlen_q = b.max_seqlen_k = b.page_size = kNonsense;
  if (!merges) b.parts = kNonsense;
  if (p.op == Op::QuantizeIndex) b.max_seqlen_q = kNonsense;
}

}  // namespace

Problem with_nonsense(const Problem& problem) {
  Problem p = problem;
  if (!is_backward_pass(p.op) && p.op != Op::IndexLoss)
    p.gradients = {.dtype = DType::I32, .accumulate = true};
  spoil_attention(p);
  spoil_index(p);
  spoil_selection(p);
  return p;
}

}  // namespace msa::testkit
