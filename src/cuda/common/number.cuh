// SPDX-License-Identifier: MIT
// Numbers that kernels share: constants, conversions, floats as integers of the same order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace msa::cuda::common {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr float kMinusInf = -__builtin_inff();
inline constexpr float kLog2e = 1.44269504088896341f;
inline constexpr float kLn2 = 0.693147180559945309f;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

/// Unsigned integers in the order of the floats, -0 as +0, NaN as -inf; no float gives 0.
__device__ __forceinline__ std::uint32_t ordered(float score) {
  const std::uint32_t u = __float_as_uint(fmaxf(score, kMinusInf) + 0.0f);
  return (u & 0x80000000u) != 0 ? ~u : (u | 0x80000000u);
}

/// The float of an ordered integer; -inf for what lies below the one of -inf.
__device__ __forceinline__ float unordered(std::uint32_t u) {
  constexpr std::uint32_t kOrderedMinusInf = 0x007fffff;
  if (u <= kOrderedMinusInf) return kMinusInf;
  return __uint_as_float((u & 0x80000000u) != 0 ? (u & 0x7fffffffu) : ~u);
}

}  // namespace msa::cuda::common
