// SPDX-License-Identifier: MIT
// Planners of the selection side: scoring, top-k, and what is done with lists of blocks.
#pragma once

#include "cpu/stage.h"

namespace msa::cpu {

/// block_scores, select_blocks, and the half of msa_attention that writes block ids.
StagePtr plan_selection(const Problem& problem, const Machine& machine);
StagePtr plan_select_topk(const Problem& problem, const Machine& machine);
StagePtr plan_merge_selections(const Problem& problem, const Machine& machine);
StagePtr plan_invert_selection(const Problem& problem, const Machine& machine);

}  // namespace msa::cpu
