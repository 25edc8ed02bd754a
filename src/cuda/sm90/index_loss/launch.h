// SPDX-License-Identifier: MIT
// Host side of Hopper's kernel of the index loss: the second of mma/index_loss, whose teacher is
// multiplied by wgmma. The first, which makes the student alone, is mma's.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/mma/index_loss/config.h"

namespace msa::cuda::sm90::index_loss {

using mma::index_loss::Config;
using mma::index_loss::Params;

/// What there is a kernel for.
inline constexpr Config kTile{
    .storage = Storage::Bf16, .head_dim = 128, .index_dim = 128, .keys = 64};

/// Defined in instances/*.cu.
template <Config cfg>
void launch_instance(const Params& params, int ctas, cudaStream_t stream);

/// As mma::index_loss::launch, which has all others.
void launch(const Config& config, const Params& params, int ctas, cudaStream_t stream);

}  // namespace msa::cuda::sm90::index_loss
