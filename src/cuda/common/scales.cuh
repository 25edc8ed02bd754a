// SPDX-License-Identifier: MIT
// The one reader of scales, and which of them need care.
#pragma once

#include "cuda/params.h"

namespace msa::cuda::common {

/// The scale of a key or value; page 0 where keys are ragged rows.
__device__ __forceinline__ float scale_of(const Scales& scales, std::int64_t page,
                                          std::int64_t token, std::int64_t head) {
  if (scales.data == nullptr) return 1.0f;
  return __ldg(scales.data + page * scales.stride_page + token * scales.stride_token +
               head * scales.stride_head);
}

/// Whether a finite code times the scale may be infinite or NaN: folded into a sum of codes, such a
/// scale would not say what the values say.
__device__ __forceinline__ bool is_odd_scale(float scale) {
  return !(fabsf(scale) <= kLargestScale);
}

}  // namespace msa::cuda::common
