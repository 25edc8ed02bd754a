// SPDX-License-Identifier: MIT
// Decode attention of common/decode with copies of the threads, and mending by it.
#pragma once

#include <cuda_runtime_api.h>

#include <array>

#include "cuda/common/decode/attend/launch.h"

namespace msa::cuda::mma::decode {

using common::decode::AttendConfig;
/// Bytes.
using Keys = KeyRows<const std::uint8_t>;
using AttendParams = common::decode::AttendParamsOf<Keys>;
using MendParams = common::decode::MendParamsOf<Keys>;

/// One CTA fits 99 KB, two fit 163.
inline constexpr int kTileRingBytes = 64 * 1024;

/// Mending takes 64 keys at a time, whatever the blocks of lists hold, as the kernels do that it
/// mends after: pages may hold any multiple of 64.
inline constexpr std::array kMendInstances = {
    AttendConfig{.storage = Storage::Bf16, .block = 64, .dim = 128},
    AttendConfig{.storage = Storage::Bf16, .block = 64, .dim = 64},
    AttendConfig{.storage = Storage::F16, .block = 64, .dim = 128},
    AttendConfig{.storage = Storage::F16, .block = 64, .dim = 64},
    AttendConfig{.storage = Storage::Bf16, .block = 64, .dim = 128, .kv = Storage::E4m3},
    AttendConfig{.storage = Storage::F16, .block = 64, .dim = 128, .kv = Storage::E4m3},
};

/// Defined in instances/*.cu, one each.
template <AttendConfig cfg>
void launch_attend_instance(const AttendParams& params, cudaStream_t stream);
template <AttendConfig cfg>
void launch_mend_instance(const MendParams& params, int multiprocessors, cudaStream_t stream);

void launch_attend(const AttendConfig& config, const AttendParams& params, cudaStream_t stream);
void launch_mend(const AttendConfig& config, const MendParams& params, int multiprocessors,
                 cudaStream_t stream);

}  // namespace msa::cuda::mma::decode
