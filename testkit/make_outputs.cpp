// SPDX-License-Identifier: MIT
// The outputs that a case asks for.
#include <algorithm>

#include "testkit/making.h"

namespace msa::testkit {

namespace {

void make_selection_outputs(Making& m, std::int64_t heads) {
  const Shape shape{m.spec.rows(), heads, m.spec.topk};
  m.operands.block_ids =
      m.tensors.output("block_ids", DType::I32, shape, m.tensors.ids_order(), false);
  if (m.spec.chosen_scores && m.spec.op != Op::MsaAttention) {
    m.operands.chosen_scores =
        m.tensors.output("chosen_scores", DType::F32, shape, m.tensors.ids_order(), false);
  }
}

}  // namespace

void make_outputs(Making& m) {
  const std::int64_t rows = m.spec.rows(), heads = m.spec.heads_q;
  const Op op = m.spec.op;
  const bool state = reads_attention_keys(op) || op == Op::MergeStates;
  if (state && (m.spec.output || op != Op::DenseAttention)) {
    m.operands.out = m.tensors.output("out", m.spec.out_type(), {rows, heads, m.spec.dim_v()},
                                      m.tensors.row_order());
  }
  if (state && m.spec.lse) {
    m.operands.lse =
        m.tensors.output("lse", DType::F32, {rows, heads}, m.tensors.lse_order(), false);
  }
  if (op == Op::DenseAttention && m.spec.block_max) {
    m.operands.block_max = m.tensors.output(
        "block_max", DType::F32, {rows, heads, score_blocks(m.spec)}, m.tensors.row_order(), false);
  }
  if (op == Op::BlockScores) {
    const Shape shape{rows, m.spec.heads_index(), score_blocks(m.spec)};
    m.operands.scores = m.tensors.output("scores", DType::F32, shape, m.tensors.row_order(), false);
  }
  if (op == Op::SelectTopk || op == Op::SelectBlocks)
    make_selection_outputs(m, m.spec.heads_index());
  if (op == Op::MergeSelections || (op == Op::MsaAttention && m.spec.ids)) {
    make_selection_outputs(m, m.spec.heads_kv);
  }
  if (op == Op::InvertSelection) {
    std::int64_t blocks = 0;
    for (const Request& r : m.requests) blocks += ceil_div(r.seqlen_k, m.spec.block_size);
    const std::int64_t entries = rows * m.spec.topk + (m.spec.slack > 0 ? 5 : 0);
    const std::int64_t extra = m.spec.slack > 0 ? 2 : 0;
    const Shape lists{m.spec.heads_kv, entries};
    m.operands.row_ptr = m.tensors.output("row_ptr", DType::I32,
                                          {m.spec.heads_kv, blocks + 1 + extra}, {0, 1}, false);
    m.operands.q_indices = m.tensors.output("q_indices", DType::I32, lists, {0, 1}, false);
    m.operands.q_slots = m.tensors.output("q_slots", DType::I32, lists, {0, 1}, false);
  }
}

}  // namespace msa::testkit
