// SPDX-License-Identifier: MIT
#include "cuda/sm90/decode/rescore/kernel.cuh"

namespace msa::cuda::sm90::decode {

template void launch_rescore_instance<RescoreConfig{.storage = Storage::Bf16, .dim = 128}>(
    const RescoreParams&, cudaStream_t);

}  // namespace msa::cuda::sm90::decode
