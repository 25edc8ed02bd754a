// SPDX-License-Identifier: MIT
#include "cuda/sm90/decode/attend_launch.inl"
#include "cuda/sm90/decode/instances.h"

namespace msa::cuda::sm90::decode {

void launch_attend_f16(const AttendParams& params, cudaStream_t stream) {
  launch_attend_storage<__half>(params, stream);
}

}  // namespace msa::cuda::sm90::decode
