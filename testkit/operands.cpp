// SPDX-License-Identifier: MIT
// From Operands to the argument structs of the public operations.
#include "testkit/operands.h"

namespace msa::testkit {

namespace {

template <class Visit>
auto with_args(Op op, const Operands& o, const Visit& visit) {
  switch (op) {
    case Op::DenseAttention:
      return visit(DenseAttentionArgs{o.q, o.k, o.v, o.batch, o.out, o.lse, o.block_max});
    case Op::BlockScores:
      return visit(BlockScoresArgs{o.index_q, o.index_k, o.batch, o.scores});
    case Op::SelectTopk:
      return visit(SelectTopkArgs{o.scores_in, o.batch, o.block_ids, o.chosen_scores});
    case Op::SelectBlocks:
      return visit(SelectBlocksArgs{o.index_q, o.index_k, o.batch, o.block_ids, o.chosen_scores});
    case Op::SparseAttention:
      return visit(SparseAttentionArgs{o.q, o.k, o.v, o.block_ids_in, o.batch, o.out, o.lse});
    case Op::MsaAttention:
      return visit(MsaAttentionArgs{o.q, o.k, o.v, o.index_q, o.index_k, o.batch, o.out, o.lse,
                                    o.block_ids});
    case Op::MergeStates:
      return visit(MergeStatesArgs{o.part_outs, o.part_lses, o.out, o.lse});
    case Op::MergeSelections:
      return visit(MergeSelectionsArgs{o.part_ids, o.part_scores, o.block_ids, o.chosen_scores});
    case Op::InvertSelection:
      break;
  }
  return visit(InvertSelectionArgs{o.block_ids_in, o.batch, o.row_ptr, o.q_indices, o.q_slots});
}

struct OneCall {
  const Settings& settings;
  void operator()(const DenseAttentionArgs& a) const { dense_attention(a, settings); }
  void operator()(const BlockScoresArgs& a) const { block_scores(a, settings); }
  void operator()(const SelectTopkArgs& a) const { select_topk(a, settings); }
  void operator()(const SelectBlocksArgs& a) const { select_blocks(a, settings); }
  void operator()(const SparseAttentionArgs& a) const { sparse_attention(a, settings); }
  void operator()(const MsaAttentionArgs& a) const { msa_attention(a, settings); }
  void operator()(const MergeStatesArgs& a) const { merge_states(a, settings); }
  void operator()(const MergeSelectionsArgs& a) const { merge_selections(a, settings); }
  void operator()(const InvertSelectionArgs& a) const { invert_selection(a, settings); }
};

}  // namespace

void run(const Plan& plan, const Operands& operands, Workspace workspace, Stream stream) {
  with_args(plan.problem().op, operands,
            [&](const auto& args) { msa::run(plan, args, workspace, stream); });
}

void run_once(Op op, const Operands& operands, const Settings& settings) {
  with_args(op, operands, OneCall{settings});
}

Problem problem_of(Op op, const Operands& operands, const Settings& settings) {
  return with_args(op, operands, [&](const auto& args) { return msa::problem_of(args, settings); });
}

std::size_t first_output(const Operands& operands) {
  Operands inputs = operands;
  inputs.out = inputs.lse = inputs.block_max = inputs.scores = inputs.block_ids = {};
  inputs.chosen_scores = inputs.row_ptr = inputs.q_indices = inputs.q_slots = {};
  std::size_t count = 0;
  for_each_tensor(inputs, [&](Tensor&) { ++count; });
  return count;
}

}  // namespace msa::testkit
