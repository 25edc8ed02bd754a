// SPDX-License-Identifier: MIT
// Host side of Hopper's kernel of shares of dq, keys outermost: for lists that share little, where
// tiles of rows would read a block for one of their tokens.
#pragma once

#include "cuda/sm90/backward/launch.h"

namespace msa::cuda::sm90::backward_shares {

using backward::kTile;
using backward::Maps;
using mma::backward::Config;

/// Rows, items and shares as sm90/backward has them.
struct Params : mma::backward::Params {
  const float* means = nullptr;  // [heads_kv, mean_tiles, head_dim]: what keys have in common
  std::int64_t mean_tiles = 0;
};

/// Defined in instances/*.cu, one each.
template <Config cfg>
void launch_instance(const Params& params, const Maps& maps, int ctas, cudaStream_t stream);

void launch(const Params& params, const Maps& maps, int ctas, cudaStream_t stream);

}  // namespace msa::cuda::sm90::backward_shares
