// SPDX-License-Identifier: MIT
// What codes of e2m1 stand for under each scale in e4m3: products, as they are or rounded to e4m3
// once more. Both have few enough bits for bf16.
#pragma once

#include <array>
#include <cstdint>

namespace msa::cpu {

/// Under one scale; a cache line.
struct alignas(64) GroupValues {
  /// Of codes 0 to 7. Codes 8 to 15 are their negatives.
  std::array<float, 8> magnitudes{};
  /// Of all codes, in bf16.
  std::array<std::uint16_t, 16> halves{};
};

/// By the code of the scale.
using GroupTable = std::array<GroupValues, 256>;

extern const GroupTable kProducts, kRoundedProducts;

/// The same in bytes, for bounds: a value is what its byte stands for times a float of its scale,
/// off by at most `error` times that float.
struct alignas(64) GroupBytes {
  /// By (the scale's mantissa, code): 128 more than the byte.
  std::array<std::uint8_t, 128> bytes{};
  /// Of a scale without a sign, the float's upper bits: those of a bfloat. NaN where bytes tell
  /// nothing: of scales that are NaN, and where products are subnormal or saturate.
  std::array<std::uint8_t, 128> high{}, low{};
  float error = 0;
};

extern const GroupBytes kProductBytes, kRoundedProductBytes;

}  // namespace msa::cpu
