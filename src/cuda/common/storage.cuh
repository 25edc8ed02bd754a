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

/// visit.template operator()<Item>() for the item of a storage of 32 or 16 bits.
template <class Visit>
void with_item(Storage storage, const Visit& visit) {
  if (storage == Storage::F32) {
    visit.template operator()<ItemOf<Storage::F32>>();
  } else if (storage == Storage::F16) {
    visit.template operator()<ItemOf<Storage::F16>>();
  } else {
    visit.template operator()<ItemOf<Storage::Bf16>>();
  }
}

}  // namespace msa::cuda::common
