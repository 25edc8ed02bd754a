// SPDX-License-Identifier: MIT
// One function a kernel and storage type, each in a .cu file of its own so that they compile apart.
#pragma once

#include "cuda/sm90/decode/launch.h"

namespace msa::cuda::sm90::decode {

void launch_score_bf16(const ScoreParams& params, cudaStream_t stream);
void launch_score_f16(const ScoreParams& params, cudaStream_t stream);

}  // namespace msa::cuda::sm90::decode
