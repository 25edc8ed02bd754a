// SPDX-License-Identifier: MIT
// In place of the library's file of this name: the same values, but for the last bits of ex2 and
// lg2.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace msa::cuda::common::ptx {

inline constexpr bool kE4m3ByHand = false;

inline float ex2(float x) { return std::exp2(x); }
inline float lg2(float x) { return std::log2(x); }

inline std::int32_t vimax3(std::int32_t a, std::int32_t b, std::int32_t c) {
  return __vimax3_s32(a, b, c);
}

inline float max_nan(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<float>::quiet_NaN();
  return std::fmax(a, b);
}

inline std::uint32_t prmt(std::uint32_t a, std::uint32_t b, std::uint32_t selectors) {
  return __byte_perm(a, b, selectors);
}

template <class T>
std::uint32_t cvt_pack(float lo, float hi) {
  return static_cast<std::uint32_t>(emulator::word_of(T(lo)) | emulator::word_of(T(hi)) << 16);
}

template <class T>
float2 cvt_unpack(std::uint32_t pair) {
  return {static_cast<float>(emulator::read_as<T>(pair)),
          static_cast<float>(emulator::read_as<T>(pair >> 16))};
}

inline __half half_of_code(std::uint8_t code) {
  return __half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3));
}

inline float e4m3_to_float(std::uint8_t code) { return static_cast<float>(half_of_code(code)); }

inline std::uint32_t cvt_f16x2_e4m3x2(std::uint16_t codes) {
  const auto lo = static_cast<std::uint8_t>(codes);
  const auto hi = static_cast<std::uint8_t>(codes >> 8);
  return static_cast<std::uint32_t>(emulator::word_of(half_of_code(lo)) |
                                    emulator::word_of(half_of_code(hi)) << 16);
}

template <class T>
std::uint32_t repack(std::uint32_t pair) {
  const float2 values = cvt_unpack<__half>(pair);
  return cvt_pack<T>(values.x, values.y);
}

template <class T>
std::uint32_t widen_e4m3x2(std::uint16_t codes) {
  return repack<T>(cvt_f16x2_e4m3x2(codes));
}

template <class T>
void widen_e4m3x4(std::uint32_t codes, std::uint32_t& first, std::uint32_t& second) {
  first = widen_e4m3x2<T>(static_cast<std::uint16_t>(codes));
  second = widen_e4m3x2<T>(static_cast<std::uint16_t>(codes >> 16));
}

inline std::uint16_t cvt_e4m3x2(float lo, float hi) {
  return __nv_cvt_float2_to_fp8x2({lo, hi}, __NV_SATFINITE, __NV_E4M3);
}

inline float round_to_e4m3(float x) {
  return e4m3_to_float(static_cast<std::uint8_t>(cvt_e4m3x2(x, 0.0f)));
}

}  // namespace msa::cuda::common::ptx
