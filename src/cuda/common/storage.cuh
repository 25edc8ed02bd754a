// SPDX-License-Identifier: MIT
// The device type behind a Storage.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/params.h"

namespace msa::cuda::common {

template <Storage kStorage>
using ItemOf =
    std::conditional_t<kStorage == Storage::F32, float,
                       std::conditional_t<kStorage == Storage::Bf16, __nv_bfloat16, __half>>;

}  // namespace msa::cuda::common
