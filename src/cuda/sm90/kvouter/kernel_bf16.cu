// SPDX-License-Identifier: MIT
#include "cuda/sm90/kvouter/kernel.cuh"

namespace msa::cuda::sm90::kvouter {

void launch_bf16(const Params& params, const Maps& maps, int chunk, int ctas, cudaStream_t stream) {
  launch_instance<__nv_bfloat16>(params, maps, chunk, ctas, stream);
}

}  // namespace msa::cuda::sm90::kvouter
