// SPDX-License-Identifier: MIT
#include "cuda/sm90/kvouter/kernel.cuh"

namespace msa::cuda::sm90::kvouter {

template void launch_instance<Config{.storage = Storage::Bf16, .kv = Storage::E4m3}>(const Params&,
                                                                                     const Maps&,
                                                                                     int, int,
                                                                                     cudaStream_t);

}  // namespace msa::cuda::sm90::kvouter
