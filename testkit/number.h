// SPDX-License-Identifier: MIT
// Floating-point numbers of 16, 8 and 4 bits in software, and the spacing of each type: what
// generators and comparisons convert with. Shares no code with the library, so that a wrong
// conversion there cannot hide here.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <span>

#include "msa/tensor.h"

namespace msa::testkit {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

inline float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// Rounds to nearest, ties to even; NaN stays NaN.
inline std::uint16_t float_to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float f16_to_float(std::uint16_t bits);
std::uint16_t float_to_f16(float value);  // nearest, ties to even

/// e4m3 has no infinity: what is too large becomes 448, infinity and NaN become NaN.
float e4m3_to_float(std::uint8_t code);
std::uint8_t float_to_e4m3(float value);  // nearest, ties to even

/// e2m1 has eight magnitudes and no NaN: what is too large becomes 6, and so does NaN.
float e2m1_to_float(int code);
int float_to_e2m1(float value);  // nearest, ties to even

/// Nearest value of the type.
float round_to(float value, DType dtype);

/// `count` neighbouring elements from `source` to floats (f32, f16, bf16, e4m3 or e2m1), and back.
/// Codes of e2m1 begin with a byte.
void load(const void* source, DType dtype, std::int64_t count, float* target);
void store(const float* source, std::int64_t count, DType dtype, void* target);

/// Products with the Hadamard matrix of `row.size()` rows, a power of two, in fp64.
void rotate(std::span<double> row);

/// Distance from |value| to the next larger number of the type.
double ulp(double value, DType dtype);

/// Relative rounding error of one conversion to the type: 2^-24 for f32, 2^-8 for bf16.
double half_ulp(DType dtype);

}  // namespace msa::testkit
