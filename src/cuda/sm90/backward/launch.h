// SPDX-License-Identifier: MIT
// Host side of Hopper's kernel of gradients of keys and values: which of the tiles of mma/backward
// it multiplies, and how to start it.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/mma/backward/config.h"

namespace msa::cuda::sm90::backward {

using mma::backward::Config;
using mma::backward::Params;

/// The one tile that there is a kernel for.
inline constexpr Config kTile{.storage = Storage::Bf16, .head_dim = 128, .keys = 128, .rows = 64};

struct Maps {
  CUtensorMap q;  // boxes of some heads of one token
  CUtensorMap dout;
  int box_shift = 4;  // log2 of the heads
};

/// Of the heads of a box, as many as divide a group: their rows fill whole swizzles. 0: none do.
constexpr int box_shift(std::int64_t group) { return group % 16 == 0 ? 4 : group % 8 == 0 ? 3 : 0; }

/// Defined in instances/*.cu, one each.
template <Config cfg>
void launch_instance(const Params& params, const Maps& maps, int ctas, cudaStream_t stream);

/// Whether there is a kernel for it: for dk and dv, without dq.
constexpr bool serves(const Config& config, const Params& params) {
  return config == kTile && params.shares.steps == nullptr && box_shift(params.pairs.group) != 0;
}

void launch(const Params& params, const Maps& maps, int ctas, cudaStream_t stream);

}  // namespace msa::cuda::sm90::backward
