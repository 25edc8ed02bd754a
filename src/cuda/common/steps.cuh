// SPDX-License-Identifier: MIT
// How a partial is stored: 16-bit steps of a bound of the row's magnitudes. A partial in bf16 would
// add a rounding as large as that of the output; steps err by 2^-16 of the bound, in as few bytes.
#pragma once

#include <cstdint>

namespace msa::cuda::common {

inline constexpr float kSteps = 32767.0f;  // of the bound
/// A float of 2^23 to 2^24 has steps of 1: adding this rounds x to the nearest step, and leaves
/// step + 2^15 in the low half of the bits.
inline constexpr float kStepZero = 8388608.0f + 32768.0f;
/// Below it the reciprocal of a step is infinite.
inline constexpr float kSmallestPeak = 0x1p-110f;

struct Steps {
  float step;     // what one step is worth
  float per_one;  // its reciprocal
};

/// The steps of a row whose magnitudes are at most `peak`. Where that is NaN, infinite or too small
/// for steps a step is NaN, and the row is computed again.
__device__ __forceinline__ Steps steps_of(float peak) {
  const bool none = peak == 0.0f;
  const bool fits = none || (peak >= kSmallestPeak && peak < INFINITY);
  const float step = fits ? peak * (1.0f / kSteps) : NAN;
  const float per_one = __fdividef(1.0f, step);
  return {step, none ? 0.0f : per_one};  // no branch: many rows' steps are made side by side
}

/// Two values as steps, `lo` in the low half.
__device__ __forceinline__ std::uint32_t pack_steps(float lo, float hi, float per_one) {
  return __byte_perm(__float_as_uint(fmaf(lo, per_one, kStepZero)),
                     __float_as_uint(fmaf(hi, per_one, kStepZero)), 0x5410);
}

/// The steps of a pair, exact.
__device__ __forceinline__ float2 unpack_steps(std::uint32_t pair) {
  constexpr std::uint32_t kExponent = 0x4b000000u;  // of 2^23
  return make_float2(__uint_as_float(__byte_perm(pair, kExponent, 0x7610)) - kStepZero,
                     __uint_as_float(__byte_perm(pair, kExponent, 0x7632)) - kStepZero);
}

}  // namespace msa::cuda::common
