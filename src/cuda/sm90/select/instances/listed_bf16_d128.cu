// SPDX-License-Identifier: MIT
#include "cuda/sm90/select/kernel.cuh"

namespace msa::cuda::sm90::select {

template void launch_instance<Config{.storage = Storage::Bf16, .pass = Pass::Listed}>(
    const Params&, const CUtensorMap&, int, cudaStream_t);

}  // namespace msa::cuda::sm90::select
