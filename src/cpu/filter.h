// SPDX-License-Identifier: MIT
// The arithmetic of the 8-bit filter: between which two numbers the score of a block lies that the
// level computes from its keys, once the codes' integer products are known.
//
// With a query q of codes times scale q8, and keys k8 of which the caller says |k - k8| <= error
// and |k8| <= norm,
//   |q k - q8 k8| <= |q| error + |q - q8| norm     (Cauchy-Schwarz, twice)
// and the computed score differs from q k by at most gamma |q| |k|, whatever the order of its
// additions: gamma = dim 2^-24 and a little, doubled here. Numbers below 2^-126 that some levels
// take for zero add what kTiny stands for. Everything is rounded outwards.
//
// Of a rotated filter all of this is said of R q / dim and R k, whose product is that of q and k: R
// is the Hadamard matrix, and R R = dim. Rotating the query is off by kRotationError of its length.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/rotate.h"
#include "msa/tensor.h"

namespace msa::cpu {

/// Of the keys of one page: a score lies within |q| error + |q - q8| norm + floor of scale * (q's
/// scale) * (integer product).
struct PageBound {
  float scale = 0;
  float error = 0;  // NaN: nothing is known
  float norm = 0;
  float floor = 0;
  std::int64_t begin = 0;  // the keys of the block that it holds for
  std::int64_t end = 0;
};

/// A half-width above tells nothing: beyond, scores might overflow, or the width itself.
inline constexpr float kWidest = 0x1p100f;
/// More than 16 times the numbers that an instruction may take for zero.
inline constexpr double kTiny = 0x1p-120;
/// Half-widths are sums of three products, each rounded.
inline constexpr double kOutwards = 1 + 0x1p-18;

inline PageBound page_bound(const float* bounds, std::int64_t stride, std::int64_t dim,
                            bool rotated) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float scale = bounds[0], error = bounds[stride], norm = bounds[2 * stride];
  const auto sound = [](float x) { return x >= 0 && x < kInf; };
  if (!sound(scale) || !sound(error) || !sound(norm)) {
    return {.error = std::numeric_limits<float>::quiet_NaN()};
  }
  const double gamma = static_cast<double>(dim + 64) * 0x1p-23 + (rotated ? kRotationError : 0);
  // As long as q is at most the root of kMaxCodedDim times as long as R q / dim.
  const double tiny = rotated ? 16 * kTiny : kTiny;
  const double longest = static_cast<double>(error) + static_cast<double>(norm);  // of the keys
  return {.scale = scale,
          .error = static_cast<float>((error + gamma * longest) * kOutwards + tiny),
          .norm = norm,
          .floor = static_cast<float>(longest * kTiny + 0x1p-115)};
}

/// A query in codes.
struct QueryBound {
  float scale = 0;
  float norm = 0;  // NaN where the query is not finite
  float error = 0;
};

/// Writes dim codes, of the query or of R q / dim.
QueryBound quantize_query(const std::byte* row, DType dtype, std::int64_t dim, bool rotated,
                          std::int8_t* codes);

}  // namespace msa::cpu
