// SPDX-License-Identifier: MIT
// Sparse prefill with keys outermost, for selections that neighbouring queries do not share: every
// block is loaded once for all queries of a chunk that listed it, each (query, block) leaves a
// partial result in a slot of its own, and a second kernel combines a query's slots in the order of
// its list. The inverse of the lists is built on the device.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/sm90/kvouter/config.h"

namespace msa::cuda::sm90::kvouter {

/// Attends and combines one chunk; defined in instances/*.cu, one each.
template <Config cfg>
void launch_instance(const Params& params, const Maps& maps, int chunk, int ctas,
                     cudaStream_t stream);

/// Fills params.counts, cursors, entries and items from the block lists of the launch.
void launch_invert(const Params& params, cudaStream_t stream);

/// Builds the inverse of the launch's lists, then attends and combines chunk after chunk.
void launch(const Config& config, const Params& params, const Maps& maps, int ctas,
            cudaStream_t stream);

}  // namespace msa::cuda::sm90::kvouter
