// SPDX-License-Identifier: MIT
// Host side of the inverse index.
#pragma once

#include "cuda/sm90/kvouter/launch.h"

namespace msa::cuda::sm90::kvouter {

/// Fills params.counts, entries and items from the block lists of the launch.
void launch_invert(const Params& params, cudaStream_t stream);

}  // namespace msa::cuda::sm90::kvouter
