// SPDX-License-Identifier: MIT
// Host side of the kernels of the index loss: which instances there are and how to start one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/mma/index_loss/config.h"

namespace msa::cuda::mma::index_loss {

/// Defined in instances/*.cu, one each.
template <Config cfg>
void launch_instance(const Params& params, int ctas, cudaStream_t stream);

void launch(const Config& config, const Params& params, int ctas, cudaStream_t stream);

/// CTAs of a config that an SM holds at once, where one CTA may take so much shared memory.
int ctas_per_sm(const Config& config, std::size_t shared_memory);

}  // namespace msa::cuda::mma::index_loss
