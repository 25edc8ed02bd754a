// SPDX-License-Identifier: MIT
#include "cuda/sm90/attend/kernel.cuh"

namespace msa::cuda::sm90::attend {

template void launch_instance<Config{
    .storage = Storage::Bf16, .head_dim = 128, .block = 128, .walk = Walk::Dense, .folds = true}>(
    const Params&, const Maps&, int, cudaStream_t);

}  // namespace msa::cuda::sm90::attend
