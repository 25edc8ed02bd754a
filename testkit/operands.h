// SPDX-License-Identifier: MIT
// Operands: the tensors of any operation under one set of names, and one way to run them. What a
// case generates, a comparison reads and a tool loads is an Operands.
#pragma once

#include <vector>

#include "msa/attention.h"

namespace msa::testkit {

struct Operands {
  // inputs
  Tensor q{}, k{}, v{};
  Tensor index_q{}, index_k{};
  Tensor scores_in{};     // select_topk
  Tensor block_ids_in{};  // sparse_attention, invert_selection
  Batch batch{};
  std::vector<Tensor> part_outs{}, part_lses{};   // merge_states
  std::vector<Tensor> part_ids{}, part_scores{};  // merge_selections
  // outputs
  Tensor out{}, lse{}, block_max{};
  Tensor scores{};                           // block_scores
  Tensor block_ids{}, chosen_scores{};       // selections
  Tensor row_ptr{}, q_indices{}, q_slots{};  // invert_selection
};

/// msa::run of the plan's operation.
void run(const Plan& plan, const Operands& operands, Workspace workspace = {}, Stream stream = {});

/// The one-call form of the operation.
void run_once(Op op, const Operands& operands, const Settings& settings);

/// msa::problem_of of the operation.
Problem problem_of(Op op, const Operands& operands, const Settings& settings);

/// Calls visit(tensor) for every tensor of the operands that is given, inputs first.
template <class Visit>
void for_each_tensor(Operands& o, const Visit& visit) {
  Batch& b = o.batch;
  for (Tensor* t : {&o.q, &o.k, &o.v, &o.index_q, &o.index_k, &o.scores_in, &o.block_ids_in,
                    &b.cu_seqlens_q, &b.seqlens_k, &b.cu_seqlens_k, &b.page_table, &b.q_offsets,
                    &b.key_offsets, &b.total_seqlens_k}) {
    if (*t) visit(*t);
  }
  for (auto* parts : {&o.part_outs, &o.part_lses, &o.part_ids, &o.part_scores}) {
    for (Tensor& t : *parts) visit(t);
  }
  for (Tensor* t : {&o.out, &o.lse, &o.block_max, &o.scores, &o.block_ids, &o.chosen_scores,
                    &o.row_ptr, &o.q_indices, &o.q_slots}) {
    if (*t) visit(*t);
  }
}

/// Index of the first output among the tensors that for_each_tensor visits.
std::size_t first_output(const Operands& operands);

}  // namespace msa::testkit
