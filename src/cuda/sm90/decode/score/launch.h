// SPDX-License-Identifier: MIT
// Decode scoring of common/decode with the copy engine and clusters.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "cuda/common/decode/score/launch.h"

namespace msa::cuda::sm90::decode {

using common::decode::ScoreConfig;
using ScoreParams = common::decode::ScoreParamsOf<CUtensorMap>;

/// Defined in instances/*.cu, one each.
template <ScoreConfig cfg>
void launch_score_instance(const ScoreParams& params, cudaStream_t stream);

void launch_score(const ScoreConfig& config, const ScoreParams& params, cudaStream_t stream);

}  // namespace msa::cuda::sm90::decode
