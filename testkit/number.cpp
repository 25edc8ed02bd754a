// SPDX-License-Identifier: MIT
// Conversions of number.h.
#include "testkit/number.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace msa::testkit {

namespace {

// Of normal numbers, by the exponent's field: ldexp and ilogb are calls, a tenth of the time of
// all drawn cases.
float power_of_two(int exponent) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(exponent + 127) << 23);
}
double wide_power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<std::uint64_t>(exponent + 1023) << 52);
}

struct FloatFormat {
  int mantissa;      // bits behind the point
  int min_exponent;  // of normal numbers
};

[[noreturn]] FloatFormat no_number(DType dtype) {
  throw std::logic_error(std::string("the test kit has no numbers of dtype ") + to_string(dtype));
}

FloatFormat format_of(DType dtype) {
  switch (dtype) {
    case DType::F16:
      return {10, -14};
    case DType::BF16:
      return {7, -126};
    case DType::F32:
      return {23, -126};
    case DType::E4M3:
      return {3, -6};
    case DType::I32:
    case DType::I64:
    case DType::I8:
    case DType::E2M1:
      break;
  }
  return no_number(dtype);
}

}  // namespace

float f16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

std::uint16_t float_to_f16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and up
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the spacing is 2^-24: adding 0.5 rounds there, to nearest even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

float e4m3_to_float(std::uint8_t code) {
  const int magnitude = code & 0x7f;
  float value = static_cast<float>(magnitude & 7) * 0x1p-9f;
  if (magnitude >= 8)
    value = (1 + static_cast<float>(magnitude & 7) / 8) * power_of_two(magnitude / 8 - 7);
  if (magnitude == 0x7f) value = std::numeric_limits<float>::quiet_NaN();
  return (code & 0x80) != 0 ? -value : value;
}

std::uint8_t float_to_e4m3(float value) {
  const int sign = std::signbit(value) ? 0x80 : 0;
  const float magnitude = std::fabs(value);
  if (!std::isfinite(value)) return static_cast<std::uint8_t>(sign | 0x7f);
  if (magnitude >= 448) return static_cast<std::uint8_t>(sign | 0x7e);
  // In steps of the last bit of the number's binade; the smallest normal one is 2^-6.
  const int field = static_cast<int>(std::bit_cast<std::uint32_t>(magnitude) >> 23);
  const int exponent = std::max(field - 127, -6);
  const auto steps = static_cast<int>(std::nearbyint(magnitude * power_of_two(3 - exponent)));
  return static_cast<std::uint8_t>(sign | ((exponent + 6) * 8 + steps));
}

namespace {

constexpr float kMagnitudes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};

}  // namespace

float e2m1_to_float(int code) {
  return (code & 8) != 0 ? -kMagnitudes[code - 8] : kMagnitudes[code];
}

int float_to_e2m1(float value) {
  // So many of the middles between two codes it passes; on a middle the even code is nearer. A NaN
  // passes all.
  const float magnitude = std::fabs(value);
  const int code = !(magnitude <= 0.25f) + !(magnitude < 0.75f) + !(magnitude <= 1.25f) +
                   !(magnitude < 1.75f) + !(magnitude <= 2.5f) + !(magnitude < 3.5f) +
                   !(magnitude <= 5);
  return code + (std::signbit(value) ? 8 : 0);
}

namespace {

struct NumberF32 {
  using Storage = float;
  static float read(float x) { return x; }
  static float write(float x) { return x; }
};
struct NumberF16 {
  using Storage = std::uint16_t;
  static float read(std::uint16_t x) { return f16_to_float(x); }
  static std::uint16_t write(float x) { return float_to_f16(x); }
};
struct NumberBF16 {
  using Storage = std::uint16_t;
  static float read(std::uint16_t x) { return bf16_to_float(x); }
  static std::uint16_t write(float x) { return float_to_bf16(x); }
};
struct NumberE4M3 {
  using Storage = std::uint8_t;
  static float read(std::uint8_t x) { return e4m3_to_float(x); }
  static std::uint8_t write(float x) { return float_to_e4m3(x); }
};

/// f(format) for a floating-point dtype.
template <class F>
auto with_format(DType dtype, const F& f) {
  switch (dtype) {
    case DType::F32:
      return f(NumberF32{});
    case DType::F16:
      return f(NumberF16{});
    case DType::BF16:
      return f(NumberBF16{});
    case DType::E4M3:
      return f(NumberE4M3{});
    case DType::I32:
    case DType::I64:
    case DType::I8:
    case DType::E2M1:
      break;
  }
  no_number(dtype);
}

}  // namespace

float round_to(float value, DType dtype) {
  if (dtype == DType::E2M1) return e2m1_to_float(float_to_e2m1(value));
  return with_format(dtype, [&](auto format) { return format.read(format.write(value)); });
}

void load(const void* source, DType dtype, std::int64_t count, float* target) {
  if (dtype == DType::E2M1) {
    const auto* pairs = static_cast<const std::uint8_t*>(source);
    for (std::int64_t i = 0; i < count; ++i)
      target[i] = e2m1_to_float(i % 2 == 0 ? pairs[i / 2] % 16 : pairs[i / 2] / 16);
    return;
  }
  with_format(dtype, [&](auto format) {
    const auto* stored = static_cast<const typename decltype(format)::Storage*>(source);
    for (std::int64_t i = 0; i < count; ++i) target[i] = format.read(stored[i]);
  });
}

void store(const float* source, std::int64_t count, DType dtype, void* target) {
  if (dtype == DType::E2M1) {
    auto* pairs = static_cast<std::uint8_t*>(target);
    for (std::int64_t i = 0; i + 1 < count; i += 2) {
      const int pair = float_to_e2m1(source[i]) + 16 * float_to_e2m1(source[i + 1]);
      pairs[i / 2] = static_cast<std::uint8_t>(pair);
    }
    return;
  }
  with_format(dtype, [&](auto format) {
    auto* stored = static_cast<typename decltype(format)::Storage*>(target);
    for (std::int64_t i = 0; i < count; ++i) stored[i] = format.write(source[i]);
  });
}

void rotate(std::span<double> row) {
  for (std::size_t half = 1; half < row.size(); half *= 2) {
    for (std::size_t d = 0; d < row.size(); ++d) {
      if ((d & half) != 0) continue;
      const double low = row[d], high = row[d + half];
      row[d] = low + high;
      row[d + half] = low - high;
    }
  }
}

double ulp(double value, DType dtype) {
  const FloatFormat format = format_of(dtype);
  const double magnitude = std::fabs(value);
  int exponent = format.min_exponent;
  if (std::isfinite(magnitude)) {
    const auto field = static_cast<int>(std::bit_cast<std::uint64_t>(magnitude) >> 52);
    exponent = std::max(exponent, field - 1023);
  }
  return wide_power_of_two(exponent - format.mantissa);
}

double half_ulp(DType dtype) { return wide_power_of_two(-format_of(dtype).mantissa - 1); }

}  // namespace msa::testkit
