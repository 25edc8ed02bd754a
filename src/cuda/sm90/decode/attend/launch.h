// SPDX-License-Identifier: MIT
// Decode attention of common/decode with the copy engine and clusters.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "cuda/common/decode/attend/launch.h"

namespace msa::cuda::sm90::decode {

using common::decode::AttendConfig;
using AttendParams = common::decode::AttendParamsOf<CUtensorMap>;
using RanksAttendParams = common::decode::RanksAttendParamsOf<CUtensorMap>;
using MendParams = common::decode::MendParamsOf<CUtensorMap>;

/// Defined in instances/*.cu, one each.
template <AttendConfig cfg>
void launch_attend_instance(const AttendParams& params, cudaStream_t stream);
template <AttendConfig cfg>
void launch_attend_ranks_instance(const RanksAttendParams& params, cudaStream_t stream);
template <AttendConfig cfg>
void launch_mend_instance(const MendParams& params, int multiprocessors, cudaStream_t stream);

void launch_attend(const AttendConfig& config, const AttendParams& params, cudaStream_t stream);
/// Of common::decode::kRanksInstances.
void launch_attend_ranks(const AttendConfig& config, const RanksAttendParams& params,
                         cudaStream_t stream);
void launch_mend(const AttendConfig& config, const MendParams& params, int multiprocessors,
                 cudaStream_t stream);

}  // namespace msa::cuda::sm90::decode
