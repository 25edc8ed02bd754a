// SPDX-License-Identifier: MIT
// Decode attention of common/decode with copies of the threads.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/common/decode/attend/launch.h"

namespace msa::cuda::mma::decode {

using common::decode::AttendConfig;
/// Bytes.
using Keys = KeyRows<const std::uint8_t>;
using AttendParams = common::decode::AttendParamsOf<Keys>;

/// Defined in instances/*.cu, one each.
template <AttendConfig cfg>
void launch_attend_instance(const AttendParams& params, cudaStream_t stream);

void launch_attend(const AttendConfig& config, const AttendParams& params, cudaStream_t stream);

}  // namespace msa::cuda::mma::decode
