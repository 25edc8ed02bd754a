// SPDX-License-Identifier: MIT
// Decode scoring of common/decode with copies of the threads.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/common/decode/score/launch.h"

namespace msa::cuda::mma::decode {

using common::decode::ScoreConfig;
/// Bytes.
using Keys = KeyRows<const std::uint8_t>;
using ScoreParams = common::decode::ScoreParamsOf<Keys>;

/// Defined in instances/*.cu, one each.
template <ScoreConfig cfg>
void launch_score_instance(const ScoreParams& params, cudaStream_t stream);

void launch_score(const ScoreConfig& config, const ScoreParams& params, cudaStream_t stream);

}  // namespace msa::cuda::mma::decode
