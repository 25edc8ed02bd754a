// SPDX-License-Identifier: MIT
// Host side of Hopper's kernels of the index loss: which tile they multiply, whom they serve, and
// how to start one.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/mma/index_loss/config.h"

namespace msa::cuda::sm90::index_loss {

using mma::index_loss::Config;
using mma::index_loss::Params;

/// The one tile that there are kernels for.
inline constexpr Config kTile{
    .storage = Storage::Bf16, .head_dim = 128, .index_dim = 128, .keys = 128};

inline constexpr int kGroup = 16;  // query heads of a token: its rows are one box

struct Maps {
  CUtensorMap q;  // boxes of the heads of one token
};

/// Whether the kernels serve problems of this kind, whose blocks of lists, if any, have so many
/// keys.
constexpr bool serves(Storage storage, std::int64_t head_dim, std::int64_t index_dim,
                      std::int64_t group, std::int64_t block) {
  return storage == kTile.storage && head_dim == kTile.head_dim && index_dim == kTile.index_dim &&
         group == kGroup && block % kTile.keys == 0;
}

/// Defined in instances/*.cu.
template <Config cfg>
void launch_instance(const Params& params, const Maps& maps, int ctas, cudaStream_t stream);

/// The student's shares, where params have room for them; else losses and gradients.
void launch(const Params& params, const Maps& maps, int ctas, cudaStream_t stream);

}  // namespace msa::cuda::sm90::index_loss
