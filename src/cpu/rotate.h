// SPDX-License-Identifier: MIT
// The rotation of a filter: products with the Hadamard matrix of Di rows, whose elements are 1 and
// -1, in fp32. docs/numerics.md says in which order, as bits depend on it.
#pragma once

#include <cstdint>

namespace msa::cpu {

/// log2(dim) passes over pairs. Each rounds once, and grows lengths by exactly the root of 2
/// otherwise: together they are off by less than 2^-20 of the result's length.
inline void rotate(float* x, std::int64_t dim) {
  for (std::int64_t half = 1; half < dim; half *= 2) {
    for (std::int64_t first = 0; first < dim; first += 2 * half) {
      for (std::int64_t d = first; d < first + half; ++d) {
        const float sum = x[d] + x[d + half];
        x[d + half] = x[d] - x[d + half];
        x[d] = sum;
      }
    }
  }
}

/// More than what a rotation is off, as a share of the result's length.
inline constexpr double kRotationError = 0x1p-20;

}  // namespace msa::cpu
