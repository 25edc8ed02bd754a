// SPDX-License-Identifier: MIT
#include "cuda/sm90/decode/instances.h"
#include "cuda/sm90/decode/score_launch.inl"

namespace msa::cuda::sm90::decode {

void launch_score_bf16(const ScoreParams& params, cudaStream_t stream) {
  launch_score_storage<__nv_bfloat16>(params, stream);
}

}  // namespace msa::cuda::sm90::decode
