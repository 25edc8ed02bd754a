// SPDX-License-Identifier: MIT
#include "cuda/sm90/backward_queries/kernel.cuh"

namespace msa::cuda::sm90::backward_queries {

template void launch_instance<Walk::Union>(const Params&, const Maps&, int, cudaStream_t);

}  // namespace msa::cuda::sm90::backward_queries
