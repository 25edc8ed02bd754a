// SPDX-License-Identifier: MIT
// Host side of the kernels of the index loss: which instances there are and how to start one.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/mma/index_loss/config.h"

namespace msa::cuda::mma::index_loss {

/// Defined in instances/*.cu, one each.
template <Config cfg>
void launch_instance(const Params& params, int ctas, cudaStream_t stream);

void launch(const Config& config, const Params& params, int ctas, cudaStream_t stream);

}  // namespace msa::cuda::mma::index_loss
