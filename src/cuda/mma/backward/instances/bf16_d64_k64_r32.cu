// SPDX-License-Identifier: MIT
#include "cuda/mma/backward/kernel.cuh"

namespace msa::cuda::mma::backward {

template void launch_instance<Config{
    .storage = Storage::Bf16, .head_dim = 64, .keys = 64, .rows = 32}>(const Params&, int,
                                                                       cudaStream_t);

}  // namespace msa::cuda::mma::backward
