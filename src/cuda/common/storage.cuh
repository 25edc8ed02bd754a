// SPDX-License-Identifier: MIT
// The device type behind a Storage; codes of 8 bits are bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/params.h"

namespace msa::cuda::common {

template <Storage kStorage>
using ItemOf = std::conditional_t<
    kStorage == Storage::F32, float,
    std::conditional_t<kStorage == Storage::Bf16, __nv_bfloat16,
                       std::conditional_t<kStorage == Storage::F16, __half, std::uint8_t>>>;

}  // namespace msa::cuda::common
