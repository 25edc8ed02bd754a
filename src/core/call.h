// SPDX-License-Identifier: MIT
// Call: the tensors of any operation under one set of names, so that validation and backends have
// one way in. Made by api.cpp from the public argument structs; a field that the operation lacks is
// a Tensor that was not given.
#pragma once

#include <span>

#include "msa/attention.h"

namespace msa::core {

struct Call {
  // inputs
  Tensor q{}, k{}, v{};         // [T, Hq, D], [N, Hkv, D] or [P, S, Hkv, D], the same with Dv
  Tensor index_q{}, index_k{};  // [T, Hi, Di], [N, Hik, Di] or [P, S, Hik, Di]
  Tensor scores_in{};           // f32 [T, Hi, blocks]: select_topk
  Tensor block_ids_in{};        // i32 [T, Hkv, k]: sparse_attention, invert_selection
  Batch batch{};
  std::span<const Tensor> part_outs{}, part_lses{};   // merge_states
  std::span<const Tensor> part_ids{}, part_scores{};  // merge_selections
  // outputs
  Tensor out{}, lse{}, block_max{};
  Tensor scores{};                           // f32 [T, Hi, blocks]: block_scores
  Tensor block_ids{}, chosen_scores{};       // selections
  Tensor row_ptr{}, q_indices{}, q_slots{};  // invert_selection
};

}  // namespace msa::core
