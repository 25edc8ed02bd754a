// SPDX-License-Identifier: MIT
// Host side of the kernel of gradients of queries.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/sm90/backward_queries/config.h"

namespace msa::cuda::sm90::backward_queries {

/// Defined in instances/*.cu, one each.
template <Walk kWalk>
void launch_instance(const Params& params, const Maps& maps, int ctas, cudaStream_t stream);

/// `ctas`: one a multiprocessor.
void launch(Walk walk, const Params& params, const Maps& maps, int ctas, cudaStream_t stream);

}  // namespace msa::cuda::sm90::backward_queries
