// SPDX-License-Identifier: MIT
// Host side of Hopper's backward kernel: which of the tiles of mma/backward it multiplies, and how
// to start it.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/mma/backward/config.h"

namespace msa::cuda::sm90::backward {

using mma::backward::Config;
using mma::backward::Params;

/// What is wanted: an instance for each, as there is no branch beside products under way.
struct Wanted {
  bool keys = true;  // dk, dv or both
  bool queries = true;
  friend constexpr bool operator==(const Wanted&, const Wanted&) = default;
};

/// The one tile that there is a kernel for.
inline constexpr Config kTile{.storage = Storage::Bf16, .head_dim = 128, .keys = 128, .rows = 64};

/// Defined in instances/*.cu, one each.
template <Wanted wanted>
void launch_instance(const Params& params, int ctas, cudaStream_t stream);

/// As mma::backward::launch, which has every other tile.
void launch(const Config& config, const Params& params, int ctas, cudaStream_t stream);

}  // namespace msa::cuda::sm90::backward
