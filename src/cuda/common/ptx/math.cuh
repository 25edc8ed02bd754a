// SPDX-License-Identifier: MIT
// Arithmetic that C++ has no name for: fast exp2 and log2, the three-input integer maximum, packed
// conversions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

// Codes of e4m3 have instructions from compute capability 8.9 on; below, the same bits are made by
// hand.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
#define MSA_E4M3_BY_HAND 1
#include <cuda_fp8.h>
#endif

namespace msa::cuda::common::ptx {

#ifdef MSA_E4M3_BY_HAND
inline constexpr bool kE4m3ByHand = true;
#else
inline constexpr bool kE4m3ByHand = false;
#endif

/// 2^x, relative error 2^-22; -inf gives 0, NaN gives NaN.
__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// log2(x), absolute error about 2^-22 around 1.
__device__ __forceinline__ float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// max(a, b, c) of signed integers in one instruction (VIMNMX3).
__device__ __forceinline__ std::int32_t vimax3(std::int32_t a, std::int32_t b, std::int32_t c) {
  return __vimax3_s32(a, b, c);
}

/// max(a, b); NaN wins against numbers.
__device__ __forceinline__ float max_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

/// Two floats rounded to T, `lo` in the low half.
template <class T>
__device__ __forceinline__ std::uint32_t cvt_pack(float lo, float hi) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>,
                "T is a 16-bit float");
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
    return reinterpret_cast<const std::uint32_t&>(pair);
  } else {
    const __half2 pair = __floats2half2_rn(lo, hi);
    return reinterpret_cast<const std::uint32_t&>(pair);
  }
}

/// Bytes of the eight of a and b: nibble i of the selectors names the one that becomes byte i, with
/// bit 3 set only its sign, eight times. The selectors' upper half is ignored.
__device__ __forceinline__ std::uint32_t prmt(std::uint32_t a, std::uint32_t b,
                                              std::uint32_t selectors) {
  std::uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(selectors));
  return bytes;
}

#ifdef MSA_E4M3_BY_HAND
/// Codes in the upper bytes of two halves as f16: the exponents' biases differ by 8.
__device__ __forceinline__ std::uint32_t f16x2_of_spread_codes(std::uint32_t spread) {
  const std::uint32_t magnitude = spread & 0x7f007f00u;
  const std::uint32_t pair = (magnitude >> 1) | (spread & 0x80008000u);
  const __half2 value =
      __hmul2(reinterpret_cast<const __half2&>(pair), __half2half2(__float2half(256.0f)));
  return reinterpret_cast<const std::uint32_t&>(value) |
         (__vcmpeq2(magnitude, 0x7f007f00u) & 0x7fff7fffu);
}
#endif

/// Two codes of e4m3, the first in the low byte, as a pair of f16: exact, NaN for NaN.
__device__ __forceinline__ std::uint32_t cvt_f16x2_e4m3x2(std::uint16_t codes) {
#ifdef MSA_E4M3_BY_HAND
  return f16x2_of_spread_codes(prmt(codes, 0, 0x1404));
#else
  std::uint32_t pair;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(codes));
  return pair;
#endif
}

__device__ __forceinline__ float e4m3_to_float(std::uint8_t code) {
  const std::uint32_t pair = cvt_f16x2_e4m3x2(code);
  return __half22float2(reinterpret_cast<const __half2&>(pair)).x;
}

/// A pair of f16 as a pair of T, rounded.
template <class T>
__device__ __forceinline__ std::uint32_t repack(std::uint32_t pair) {
  const float2 values = __half22float2(reinterpret_cast<const __half2&>(pair));
  return cvt_pack<T>(values.x, values.y);
}

/// Two codes of e4m3 as a pair of T. Exact: T has more bits of exponent and of mantissa.
template <class T>
__device__ __forceinline__ std::uint32_t widen_e4m3x2(std::uint16_t codes) {
  const std::uint32_t pair = cvt_f16x2_e4m3x2(codes);
  if constexpr (std::is_same_v<T, __half>) {
    return pair;
  } else {
    return repack<T>(pair);
  }
}

/// Four codes of e4m3, the first in the low byte, as two pairs of T. The halves of the register are
/// named so that the conversion reads the upper one where it is: a shift costs as much as it does.
template <class T>
__device__ __forceinline__ void widen_e4m3x4(std::uint32_t codes, std::uint32_t& first,
                                             std::uint32_t& second) {
#ifdef MSA_E4M3_BY_HAND
  first = f16x2_of_spread_codes(prmt(codes, 0, 0x1404));
  second = f16x2_of_spread_codes(prmt(codes, 0, 0x3424));
#else
  asm("{\n.reg .b16 lo, hi;\nmov.b32 {lo, hi}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, lo;\ncvt.rn.f16x2.e4m3x2 %1, hi;\n}"
      : "=r"(first), "=r"(second)
      : "r"(codes));
#endif
  if constexpr (!std::is_same_v<T, __half>) {
    first = repack<T>(first);
    second = repack<T>(second);
  }
}

/// Codes of two numbers, lo in the low byte: half to even; what is too large, infinities included,
/// becomes 448, NaN some NaN.
__device__ __forceinline__ std::uint16_t cvt_e4m3x2(float lo, float hi) {
#ifdef MSA_E4M3_BY_HAND
  return __nv_cvt_float2_to_fp8x2({lo, hi}, __NV_SATFINITE, __NV_E4M3);
#else
  std::uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(hi), "f"(lo));
  return codes;
#endif
}

/// The nearest value of e4m3, half to even; beyond 448 it is 448, NaN stays NaN.
__device__ __forceinline__ float round_to_e4m3(float x) {
  return e4m3_to_float(static_cast<std::uint8_t>(cvt_e4m3x2(x, 0.0f)));
}

/// The two values of a packed pair, exact.
template <class T>
__device__ __forceinline__ float2 cvt_unpack(std::uint32_t pair) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    // An instruction an item, where the toolkit's function takes out the half first.
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  } else {
    return __half22float2(reinterpret_cast<const __half2&>(pair));
  }
}

}  // namespace msa::cuda::common::ptx
