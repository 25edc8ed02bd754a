// SPDX-License-Identifier: MIT
#include "cuda/mma/index_loss/kernel.cuh"

namespace msa::cuda::mma::index_loss {

template void launch_instance<Config{
    .storage = Storage::Bf16, .head_dim = 64, .index_dim = 128, .keys = 64}>(const Params&, int,
                                                                             cudaStream_t);

}  // namespace msa::cuda::mma::index_loss
