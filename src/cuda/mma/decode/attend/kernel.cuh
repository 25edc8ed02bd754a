// SPDX-License-Identifier: MIT
#pragma once

#include "cuda/common/decode/attend/kernel.cuh"
#include "cuda/mma/decode/attend/launch.h"
#include "cuda/mma/decode/engine.cuh"

namespace msa::cuda::mma::decode {

template <AttendConfig cfg>
void launch_attend_instance(const AttendParams& params, cudaStream_t stream) {
  common::decode::launch_attend_kernel<common::decode::AttendTraits<cfg, Engine>>(params, stream);
}

}  // namespace msa::cuda::mma::decode
