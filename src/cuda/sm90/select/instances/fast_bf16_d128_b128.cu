// SPDX-License-Identifier: MIT
#include "cuda/sm90/select/kernel.cuh"

namespace msa::cuda::sm90::select {

template void launch_instance<Config{.storage = Storage::Bf16, .block = 128, .pass = Pass::Fast}>(
    const Params&, const CUtensorMap&, int, cudaStream_t);

}  // namespace msa::cuda::sm90::select
