// SPDX-License-Identifier: MIT
// Decode scoring of common/decode with the copy engine and clusters.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "cuda/common/decode/score/launch.h"

namespace msa::cuda::sm90::decode {

using common::decode::ScoreConfig;
using ScoreParams = common::decode::ScoreParamsOf<CUtensorMap>;

/// Teams of four warps, with a producer each, that score keys stored so, of so many tiles of
/// columns: what one waits for others hide.
constexpr int score_teams(Storage keys, int tiles) {
  if (tiles > 1) return 1;
  return keys == Storage::E2m1 ? 4 : keys == Storage::E4m3 ? 2 : 1;
}

/// Whether a CTA of attention stands beside one of scoring: several teams take its registers.
constexpr bool leaves_room(Storage keys, int tiles) { return score_teams(keys, tiles) == 1; }

/// Defined in instances/*.cu, one each.
template <ScoreConfig cfg>
void launch_score_instance(const ScoreParams& params, cudaStream_t stream);

void launch_score(const ScoreConfig& config, const ScoreParams& params, cudaStream_t stream);

}  // namespace msa::cuda::sm90::decode
