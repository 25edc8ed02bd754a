// SPDX-License-Identifier: MIT
// The one reader of scales, and which of them need care.
#pragma once

#include "cuda/params.h"

namespace msa::cuda::common {

/// Where a key's scale lies, or the first of its groups; page 0 where keys are ragged rows.
template <class From>
__device__ __forceinline__ auto scale_at(const From& scales, std::int64_t page, std::int64_t token,
                                         std::int64_t head) {
  return scales.data + page * scales.stride_page + token * scales.stride_token +
         head * scales.stride_head;
}

/// The scale of a key or value.
__device__ __forceinline__ float scale_of(const Scales& scales, std::int64_t page,
                                          std::int64_t token, std::int64_t head) {
  if (scales.data == nullptr) return 1.0f;
  return __ldg(scale_at(scales, page, token, head));
}

/// Whether all keys of a head share one.
__device__ __forceinline__ bool shares_scale(const Scales& scales) {
  return scales.data == nullptr || (scales.stride_page == 0 && scales.stride_token == 0);
}

/// Those of all groups of a key, of 128 elements.
__device__ __forceinline__ uint2 scale_of(const GroupScales& scales, std::int64_t page,
                                          std::int64_t token, std::int64_t head) {
  return __ldg(reinterpret_cast<const uint2*>(scale_at(scales, page, token, head)));
}

/// Whether a finite code times the scale may be infinite or NaN: folded into a sum of codes, such a
/// scale would not say what the values say.
__device__ __forceinline__ bool is_odd_scale(float scale) {
  return !(fabsf(scale) <= kLargestScale);
}

/// A maximum to take weights against that scales of values multiply: the next one above `top` that
/// is a whole power of two away from 0. Against `top` itself the largest weight of each row is 1,
/// and its product with a scale that many rows share rounds to the same side in all of them.
__device__ __forceinline__ float whole_power(float top, float scale_log2) {
  const float whole = __fdividef(ceilf(top * scale_log2), scale_log2);
  const float above = (whole - top) * scale_log2;  // not so where top or the scale is extreme
  return above >= 0.0f && above < 2.0f ? whole : top;
}

/// One scale for all keys of a head and one for all values, which multiply numbers that multiply
/// anyway.
template <bool kCodes>
struct Folded {
  __device__ __forceinline__ float scores(float scale) const { return scale; }
  __device__ __forceinline__ float values(float scale) const { return scale; }
};
template <>
struct Folded<true> {
  float of_keys = 1.0f;
  float of_values = 1.0f;
  int odd = 0;  // they do not fold: what they give must be computed again
  __device__ __forceinline__ float scores(float scale) const { return scale * of_keys; }
  __device__ __forceinline__ float values(float scale) const { return scale * of_values; }
};

/// Scales of keys that fold into the softmax scale: with others a maximum would be none, or
/// products leave f32.
inline constexpr float kSmallestFolded = 0x1p-60f;
inline constexpr float kLargestFolded = 0x1p60f;

/// Those of a head, in a page where each has its own.
__device__ __forceinline__ Folded<true> fold_scales(const Scales& of_keys, const Scales& of_values,
                                                    int page, int head) {
  Folded<true> folded;
  folded.of_values = scale_of(of_values, page, 0, head);
  folded.odd = is_odd_scale(folded.of_values) ? 1 : 0;
  const float scale = scale_of(of_keys, page, 0, head);
  if (scale >= kSmallestFolded && scale <= kLargestFolded) {
    folded.of_keys = scale;
  } else {
    folded.odd = 1;
  }
  return folded;
}

}  // namespace msa::cuda::common
