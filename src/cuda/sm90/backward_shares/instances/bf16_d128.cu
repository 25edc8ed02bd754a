// SPDX-License-Identifier: MIT
#include "cuda/sm90/backward_shares/kernel.cuh"

namespace msa::cuda::sm90::backward_shares {

template void launch_instance<kTile>(const Params&, const Maps&, int, cudaStream_t);

}  // namespace msa::cuda::sm90::backward_shares
