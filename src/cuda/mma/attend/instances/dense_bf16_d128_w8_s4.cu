// SPDX-License-Identifier: MIT
#include "cuda/mma/attend/kernel.cuh"

namespace msa::cuda::mma::attend {

template void launch_instance<Config{
    .storage = Storage::Bf16, .head_dim = 128, .walk = Walk::Dense, .warps = 8, .stages = 4}>(
    const Params&, cudaStream_t);

}  // namespace msa::cuda::mma::attend
