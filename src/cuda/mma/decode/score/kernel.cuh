// SPDX-License-Identifier: MIT
#pragma once

#include "cuda/common/decode/score/kernel.cuh"
#include "cuda/mma/decode/engine.cuh"
#include "cuda/mma/decode/score/launch.h"

namespace msa::cuda::mma::decode {

template <ScoreConfig cfg>
void launch_score_instance(const ScoreParams& params, cudaStream_t stream) {
  common::decode::launch_score_kernel<common::decode::ScoreTraits<cfg, Engine>>(params, stream);
}

}  // namespace msa::cuda::mma::decode
