// SPDX-License-Identifier: MIT
#pragma once

#include "cuda/common/decode/attend/kernel.cuh"
#include "cuda/common/decode/attend/mend.cuh"
#include "cuda/mma/decode/attend/launch.h"
#include "cuda/mma/decode/engine.cuh"

namespace msa::cuda::mma::decode {

template <AttendConfig cfg>
struct MendTraits : common::decode::AttendTraits<cfg, Engine> {
  static constexpr bool kHalvesBlocks = true;
  static constexpr bool kSelects = false;  // blocks are listed
};

template <AttendConfig cfg>
void launch_attend_instance(const AttendParams& params, cudaStream_t stream) {
  common::decode::launch_attend_kernel<common::decode::AttendTraits<cfg, Engine>>(params, stream);
}

template <AttendConfig cfg>
void launch_mend_instance(const MendParams& params, int multiprocessors, cudaStream_t stream) {
  common::decode::launch_mend_kernel<MendTraits<cfg>>(params, multiprocessors, stream);
}

}  // namespace msa::cuda::mma::decode
