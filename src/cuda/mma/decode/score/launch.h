// SPDX-License-Identifier: MIT
// Decode scoring of common/decode with copies of the threads.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/common/decode/score/launch.h"

namespace msa::cuda::mma::decode {

using common::decode::ScoreConfig;
using common::decode::ScoreTeams;
/// Bytes.
using Keys = KeyRows<const std::uint8_t>;
using ScoreParams = common::decode::ScoreParamsOf<Keys>;

/// CTAs that fit an SM of 160 KB of shared memory and more: registers, with more columns, leave
/// room for one.
constexpr int score_ctas_per_sm(int tiles) { return tiles == 1 ? 2 : 1; }

constexpr ScoreTeams score_teams(const ScoreConfig& config) {
  constexpr int kRing = 64 * 1024;  // as of attention
  if (config.keys == Storage::I8 && config.tiles <= 2)
    return {.teams = 2, .warps = 2, .producers = 1, .ring_bytes = kRing};
  if (config.keys == Storage::E2m1 && config.tiles == 1)
    return {.teams = 2, .warps = 4, .producers = 2, .ring_bytes = kRing};
  return {.ring_bytes = kRing};
}

/// Defined in instances/*.cu, one each.
template <ScoreConfig cfg>
void launch_score_instance(const ScoreParams& params, cudaStream_t stream);

void launch_score(const ScoreConfig& config, const ScoreParams& params, cudaStream_t stream);

}  // namespace msa::cuda::mma::decode
