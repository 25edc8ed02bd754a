// SPDX-License-Identifier: MIT
// Storage formats as doubles: every f32, f16, bf16, e4m3 and e2m1 is a double exactly; back,
// rounding is to nearest, ties to even.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/fail.h"
#include "msa/tensor.h"

namespace msa::reference {

/// A 16-bit binary format: 1 sign bit, then exponent, then mantissa.
struct Format16 {
  int exponent_bits;
  int mantissa_bits;
  constexpr int min_exponent() const { return 2 - (1 << (exponent_bits - 1)); }
  constexpr std::uint32_t infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }
};

inline constexpr Format16 kF16{5, 10};
inline constexpr Format16 kBF16{8, 7};

/// 2 to the power of a normal double's exponent.
inline double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<std::uint64_t>(exponent + 1023) << 52);
}

/// Of a finite magnitude; of 0 and subnormal doubles -1023.
inline int exponent_of(double magnitude) {
  return static_cast<int>(std::bit_cast<std::uint64_t>(magnitude) >> 52) - 1023;
}

inline double decode(std::uint16_t bits, Format16 f) {
  const std::uint32_t magnitude = bits & 0x7fffu;
  const int exponent = static_cast<int>(magnitude >> f.mantissa_bits);
  const std::uint32_t mantissa = magnitude & ((1u << f.mantissa_bits) - 1);
  double value = 0;
  if (magnitude > f.infinity()) {
    value = std::numeric_limits<double>::quiet_NaN();
  } else if (magnitude == f.infinity()) {
    value = std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    value = mantissa * power_of_two(f.min_exponent() - f.mantissa_bits);
  } else {
    value = (mantissa + (1u << f.mantissa_bits)) *
            power_of_two(f.min_exponent() + exponent - 1 - f.mantissa_bits);
  }
  return (bits & 0x8000u) != 0 ? -value : value;
}

inline std::uint16_t encode(double value, Format16 f) {
  const std::uint32_t sign = std::signbit(value) ? 0x8000u : 0u;
  const double magnitude = std::fabs(value);
  std::uint32_t bits = f.infinity();
  if (std::isnan(value)) {
    bits += 1u << (f.mantissa_bits - 1);
  } else if (magnitude < 0x1p200) {  // beyond any finite number of the formats
    const int exponent = std::max(exponent_of(magnitude), f.min_exponent());
    // Whole steps of the last mantissa bit; a carry moves into the exponent by itself.
    const double steps = std::nearbyint(magnitude * power_of_two(f.mantissa_bits - exponent));
    bits = static_cast<std::uint32_t>(exponent - f.min_exponent()) << f.mantissa_bits;
    bits = std::min(bits + static_cast<std::uint32_t>(steps), f.infinity());
  }
  return static_cast<std::uint16_t>(sign | bits);
}

/// Planning has rejected the dtype: a defect where it comes.
[[noreturn]] inline void unserved(DType dtype) {
  core::fail(ErrorCode::Internal, "dtype", "", "a type that planning accepts", to_string(dtype));
}

// How one element is read, as a type, so that loops over elements choose the format once.
struct ReadF32 {
  using Storage = float;
  static double read(float x) { return x; }
};
struct ReadF16 {
  using Storage = std::uint16_t;
  static double read(std::uint16_t bits) {
    const std::uint32_t magnitude = bits & 0x7fffu;
    if (magnitude < 0x0400u || magnitude >= kF16.infinity()) return decode(bits, kF16);
    // A normal number: the fields of an f32, its exponent counted from 127 instead of 15.
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
  }
};
struct ReadBF16 {  // the upper half of an f32
  using Storage = std::uint16_t;
  static double read(std::uint16_t bits) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
};

/// 1 sign bit, 4 of the exponent, 3 of the mantissa. No infinity: the largest magnitude is NaN.
struct ReadE4M3 {
  using Storage = std::uint8_t;
  static double read(std::uint8_t code) {
    const int magnitude = code & 0x7f, exponent = magnitude >> 3, mantissa = magnitude & 7;
    double value = exponent == 0 ? mantissa * 0x1p-9 : (8 + mantissa) * power_of_two(exponent - 10);
    if (magnitude == 0x7f) value = std::numeric_limits<double>::quiet_NaN();
    return (code & 0x80) != 0 ? -value : value;
  }
};

/// Largest finite magnitude; beyond it, infinities included, numbers saturate.
inline constexpr double kLargestE4M3 = 448;

/// NaN becomes 0x7f, whatever its sign.
inline std::uint8_t encode_e4m3(double value) {
  if (std::isnan(value)) return 0x7f;
  const std::uint32_t sign = std::signbit(value) ? 0x80u : 0u;
  const double magnitude = std::min(std::fabs(value), kLargestE4M3);
  const int exponent = std::max(exponent_of(magnitude), -6);
  // Whole steps of the last mantissa bit; a carry moves into the exponent by itself.
  const double steps = std::nearbyint(magnitude * power_of_two(3 - exponent));
  const std::uint32_t bits =
      static_cast<std::uint32_t>(exponent + 6) * 8 + static_cast<std::uint32_t>(steps);
  return static_cast<std::uint8_t>(sign | bits);
}

/// Element `at` of codes that lie two in a byte: 1 sign bit, 2 of the exponent, 1 of the mantissa.
inline double read_e2m1(const void* data, std::int64_t at) {
  const int pair = static_cast<const std::uint8_t*>(data)[at / 2];
  const int code = at % 2 == 0 ? pair & 15 : pair >> 4;
  const int exponent = code >> 1 & 3, mantissa = code & 1;
  const double value = exponent == 0 ? mantissa * 0.5 : (2 + mantissa) * power_of_two(exponent - 2);
  return (code & 8) != 0 ? -value : value;
}

/// Calls f with the reader of a floating-point format whose elements are whole bytes.
template <class F>
auto with_reader(DType dtype, const F& f) {
  switch (dtype) {
    case DType::F16:
      return f(ReadF16{});
    case DType::BF16:
      return f(ReadBF16{});
    case DType::F32:
      return f(ReadF32{});
    case DType::E4M3:
      return f(ReadE4M3{});
    case DType::I32:
    case DType::I64:
    case DType::I8:
    case DType::E2M1:
      break;
  }
  unserved(dtype);
}

/// Element at an offset counted in elements.
inline double load(const Tensor& t, std::int64_t offset) {
  if (t.dtype == DType::E2M1) return read_e2m1(t.data, offset);
  return with_reader(t.dtype, [&](auto reader) {
    return reader.read(static_cast<const typename decltype(reader)::Storage*>(t.data)[offset]);
  });
}

inline void store(const Tensor& t, std::int64_t offset, double value) {
  switch (t.dtype) {
    case DType::F16:
      static_cast<std::uint16_t*>(t.data)[offset] = encode(value, kF16);
      return;
    case DType::BF16:
      static_cast<std::uint16_t*>(t.data)[offset] = encode(value, kBF16);
      return;
    case DType::F32:
      static_cast<float*>(t.data)[offset] = static_cast<float>(value);
      return;
    case DType::I32:
    case DType::I64:
    case DType::E4M3:
    case DType::I8:
    case DType::E2M1:
      break;
  }
  unserved(t.dtype);
}

}  // namespace msa::reference
