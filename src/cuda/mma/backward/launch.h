// SPDX-License-Identifier: MIT
// Host side of the backward kernel: which instances there are and how to start one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/mma/backward/config.h"

namespace msa::cuda::mma::backward {

/// Defined in instances/*.cu, one each.
template <Config cfg>
void launch_instance(const Params& params, int ctas, cudaStream_t stream);

void launch(const Config& config, const Params& params, int ctas, cudaStream_t stream);

/// The instance for a block, of any size where there are no lists (block 0), on a card where a CTA
/// may take so much shared memory.
Config config_for(Storage storage, int head_dim, int block, std::size_t shared_memory);

}  // namespace msa::cuda::mma::backward
