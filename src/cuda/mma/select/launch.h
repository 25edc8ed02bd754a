// SPDX-License-Identifier: MIT
// Block scores, and selection over a bounded scratch of them, by instructions that every
// architecture from 8.0 on has.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/common/select/launch.h"
#include "cuda/mma/select/config.h"

namespace msa::cuda::mma::select {

using common::select::Front;
using common::select::Queries;
using common::select::ScoresOut;
using common::select::SelectPlan;

/// block_scores. What no row of a tile sees is -inf before.
void launch_block_scores(const SelectPlan& plan, const Front& front, const Queries& queries,
                         const KeyRows<const std::uint16_t>& keys, const ScoresOut& out,
                         cudaStream_t stream);

/// select_blocks. Of `out`, the ids, the chosen scores and k are read.
void launch_select_blocks(const SelectPlan& plan, const Front& front, const Queries& queries,
                          const KeyRows<const std::uint16_t>& keys,
                          const common::topk::TopkParams& out, float* scratch, cudaStream_t stream);

/// One launch of the scoring kernel; defined in instances/*.cu, one each. `ctas`: as many as run at
/// once.
template <Config cfg>
void launch_instance(const Params& params, int ctas, cudaStream_t stream);

}  // namespace msa::cuda::mma::select
