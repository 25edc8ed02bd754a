// SPDX-License-Identifier: MIT
#pragma once

#include "cuda/common/decode/attend/kernel.cuh"
#include "cuda/common/decode/attend/mend.cuh"
#include "cuda/common/decode/attend/ranks_kernel.cuh"
#include "cuda/sm90/decode/attend/exchange.cuh"
#include "cuda/sm90/decode/attend/launch.h"

namespace msa::cuda::sm90::decode {

template <AttendConfig cfg>
void launch_attend_instance(const AttendParams& params, cudaStream_t stream) {
  common::decode::launch_attend_kernel<common::decode::AttendTraits<cfg, AttendEngine>>(params,
                                                                                        stream);
}

template <AttendConfig cfg>
void launch_attend_ranks_instance(const RanksAttendParams& params, cudaStream_t stream) {
  common::decode::launch_attend_ranks_kernel<common::decode::RanksTraits<cfg, AttendEngine>>(
      params, stream);
}

template <AttendConfig cfg>
void launch_mend_instance(const MendParams& params, int multiprocessors, cudaStream_t stream) {
  common::decode::launch_mend_kernel<common::decode::AttendTraits<cfg, AttendEngine>>(
      params, multiprocessors, stream);
}

}  // namespace msa::cuda::sm90::decode
