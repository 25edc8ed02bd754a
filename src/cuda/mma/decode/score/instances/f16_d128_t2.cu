// SPDX-License-Identifier: MIT
#include "cuda/mma/decode/score/kernel.cuh"

namespace msa::cuda::mma::decode {

template void launch_score_instance<ScoreConfig{.storage = Storage::F16, .tiles = 2, .dim = 128}>(
    const ScoreParams&, cudaStream_t);

}  // namespace msa::cuda::mma::decode
