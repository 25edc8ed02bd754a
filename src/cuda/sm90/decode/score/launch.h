// SPDX-License-Identifier: MIT
// Decode scoring of common/decode with the copy engine and clusters.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>

#include "cuda/common/decode/score/launch.h"

namespace msa::cuda::sm90::decode {

using common::decode::ScoreConfig;
using common::decode::ScoreTeams;
using ScoreParams = common::decode::ScoreParamsOf<CUtensorMap>;

/// Instances: those of every architecture, and those that stand alone.
inline constexpr auto kInstances = [] {
  constexpr auto& kShared = common::decode::kScoreInstances;
  std::array<ScoreConfig, kShared.size() + 2> all{};
  std::copy(kShared.begin(), kShared.end(), all.begin());
  all[kShared.size()] = {.storage = Storage::Bf16, .keys = Storage::E4m3, .alone = true};
  all[kShared.size() + 1] = {.storage = Storage::F16, .keys = Storage::E4m3, .alone = true};
  return all;
}();

/// Whether there is an instance like it that stands alone.
constexpr bool may_stand_alone(ScoreConfig config) {
  config.alone = true;
  return std::find(kInstances.begin(), kInstances.end(), config) != kInstances.end();
}

/// Of one team half of an SM's shared memory: a CTA of attention waits beside it. What one of
/// several waits for others hide, but they take the registers of that CTA.
constexpr ScoreTeams score_teams(const ScoreConfig& config) {
  constexpr int kHalf = 96 * 1024;
  if (config.keys == Storage::I8 && config.tiles <= 2)
    return {.teams = 2, .warps = 4, .producers = 1, .ring_bytes = kHalf};
  if (config.keys == Storage::E2m1 && config.tiles == 1)
    return {.teams = 4, .warps = 4, .producers = 4, .ring_bytes = kHalf};
  if (config.alone) return {.teams = 4, .warps = 4, .producers = 4, .ring_bytes = 128 * 1024};
  return {.ring_bytes = kHalf};
}

/// Defined in instances/*.cu, one each.
template <ScoreConfig cfg>
void launch_score_instance(const ScoreParams& params, cudaStream_t stream);

void launch_score(const ScoreConfig& config, const ScoreParams& params, cudaStream_t stream);

}  // namespace msa::cuda::sm90::decode
