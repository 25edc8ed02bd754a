// SPDX-License-Identifier: MIT
#include "cuda/mma/decode/score/kernel.cuh"

namespace msa::cuda::mma::decode {

template void launch_score_instance<ScoreConfig{
    .storage = Storage::Bf16, .tiles = 1, .dim = 128, .keys = Storage::E2m1}>(const ScoreParams&,
                                                                              cudaStream_t);

}  // namespace msa::cuda::mma::decode
