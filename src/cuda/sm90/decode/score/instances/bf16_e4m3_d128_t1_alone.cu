// SPDX-License-Identifier: MIT
#include "cuda/sm90/decode/score/kernel.cuh"

namespace msa::cuda::sm90::decode {

template void launch_score_instance<ScoreConfig{
    .storage = Storage::Bf16, .tiles = 1, .dim = 128, .keys = Storage::E4m3, .alone = true}>(
    const ScoreParams&, cudaStream_t);

}  // namespace msa::cuda::sm90::decode
