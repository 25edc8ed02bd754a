// SPDX-License-Identifier: MIT
// Queries in codes. Plain code for all levels, so that they all get the same codes.
#include "cpu/filter.h"

#include <algorithm>
#include <array>

#include "cpu/isa.h"
#include "cpu/storage.h"

namespace msa::cpu {
namespace {

constexpr std::int64_t kMost = 256;  // dims that are served

void load_row(const std::byte* row, DType dtype, std::int64_t dim, float* values) {
  with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    const auto* const items = reinterpret_cast<const typename S::T*>(row);
    for (std::int64_t d = 0; d < dim; ++d) values[d] = S::read(items[d]);
  });
}

/// To the nearest integer, below 2^22.
float round_small(float x) { return (x + 12582912.0f) - 12582912.0f; }

/// The root of a sum of squares, and more than it.
float length(double squares) {
  return static_cast<float>(std::sqrt(squares) * kOutwards) + 0x1p-140f;
}

}  // namespace

QueryBound quantize_query(const std::byte* row, DType dtype, std::int64_t dim, bool rotated,
                          std::int8_t* codes) {
  std::array<float, kMost> values;
  load_row(row, dtype, dim, values.data());
  if (rotated) rotate(values.data(), dim);
  float largest = 0;
  bool finite = true;
  for (std::int64_t d = 0; d < dim; ++d) {
    const float size = std::fabs(values[d]);
    finite = finite && size < std::numeric_limits<float>::infinity();
    largest = std::max(largest, size);
  }
  std::fill_n(codes, dim, std::int8_t{0});
  if (!finite) return {.norm = std::numeric_limits<float>::quiet_NaN()};
  const float scale = largest / 127;
  double squares = 0, errors = 0;
  for (std::int64_t d = 0; d < dim; ++d) {
    // Where the scale underflows, all codes are 0.
    const float code =
        scale > 0 ? round_small(std::clamp(values[d] / scale, -127.0f, 127.0f)) : 0.0f;
    const double error = static_cast<double>(values[d]) - static_cast<double>(code) * scale;
    codes[d] = static_cast<std::int8_t>(code);
    squares += static_cast<double>(values[d]) * values[d];
    errors += error * error;
  }
  // A power of two: what underflows is less than the small numbers.
  const float share = rotated ? 1.0f / static_cast<float>(dim) : 1.0f;
  return {scale * share, length(squares) * share,
          length(errors) * share + static_cast<float>(kTiny)};
}

}  // namespace msa::cpu
