// SPDX-License-Identifier: MIT
#include "cuda/common/decode/rescore/kernel.cuh"

namespace msa::cuda::common::decode {

template void launch_rescore_instance<RescoreConfig{.storage = Storage::Bf16, .dim = 128}>(
    const RescoreParams&, cudaStream_t);

}  // namespace msa::cuda::common::decode
