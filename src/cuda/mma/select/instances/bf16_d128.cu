// SPDX-License-Identifier: MIT
#include "cuda/mma/select/kernel.cuh"

namespace msa::cuda::mma::select {

template void launch_instance<Config{.storage = Storage::Bf16, .dim = 128}>(const Params&, int,
                                                                            cudaStream_t);

}  // namespace msa::cuda::mma::select
