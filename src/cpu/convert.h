// SPDX-License-Identifier: MIT
// Single values between fp32 and the storage types of 16, 8 and 4 bits, in plain C++: round to
// nearest even, NaN stays a quiet NaN.
#pragma once

#include <bit>
#include <cstdint>

namespace msa::cpu {

constexpr float bf16_to_float(std::uint16_t x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x) << 16);
}

constexpr std::uint16_t float_to_bf16(float x) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((u >> 16) | 0x40u);
  return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

constexpr float f16_to_float(std::uint16_t x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x & 0x8000u) << 16;
  const std::uint32_t exponent = (x >> 10) & 0x1fu, mantissa = x & 0x3ffu;
  if (exponent == 0x1fu) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // zero or subnormal: exact
  return sign != 0 ? -magnitude : magnitude;
}

constexpr std::uint16_t float_to_f16(float x) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  std::uint32_t half = 0;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // normal: rebias, round away 13 bits
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  } else {  // subnormal: the addition of 0.5 rounds to a multiple of 2^-24 in the current (nearest)
            // mode
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  }
  return static_cast<std::uint16_t>(sign | half);
}

/// e4m3 has the fields of an f16 without its highest exponent bit, counted from 7 instead of 15.
constexpr float e4m3_to_float(std::uint8_t x) {
  const std::uint32_t magnitude = x & 0x7fu, sign = (x & 0x80u) << 8;
  if (magnitude == 0x7fu) return std::bit_cast<float>((sign << 16) | 0x7fc00000u);
  return f16_to_float(static_cast<std::uint16_t>(sign | magnitude << 7)) * 256.0f;
}

/// Saturates, infinities too; NaN becomes 0x7f, whatever its sign.
constexpr std::uint8_t float_to_e4m3(float x) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (u >> 24) & 0x80u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  std::uint32_t code = 0x7e;
  if (magnitude < 0x3c800000u) {  // below 2^-6: the addition rounds to a multiple of 2^-9
    code = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14f) - 0x46800000u;
  } else if (magnitude < 0x43e00000u) {  // below 448: rebias, round away 20 bits
    code = (magnitude - 0x3c000000u + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
  }
  return static_cast<std::uint8_t>(sign | code);
}

constexpr float e2m1_to_float(std::uint8_t x) {
  constexpr float kMagnitudes[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  return (x & 8) != 0 ? -kMagnitudes[x & 7] : kMagnitudes[x & 7];
}

}  // namespace msa::cpu
