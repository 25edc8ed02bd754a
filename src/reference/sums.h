// SPDX-License-Identifier: MIT
// What gradients are made of: the keys of a request, which have no pages in a backward pass, sums
// of vectors, and where such a sum goes.
#pragma once

#include <cstdint>
#include <span>

#include "core/call.h"
#include "core/geometry.h"
#include "reference/view.h"

namespace msa::reference {

inline Keys ragged(const core::Call& call, const Tensor& keys, const core::Request& r) {
  return {keys, call.batch.page_table, 0, r.k_begin};
}

inline void add_row(std::span<double> sums, double factor, const Vector& row) {
  for (std::size_t d = 0; d < sums.size(); ++d)
    sums[d] += factor * row[static_cast<std::int64_t>(d)];
}

/// Writes `factor` times the sums, or adds that to what lies there.
inline void store_gradient(const Tensor& to, std::int64_t row, std::int64_t head, double factor,
                           std::span<const double> sums, bool accumulate) {
  for (std::size_t d = 0; d < sums.size(); ++d) {
    const std::int64_t at = offset(to, row, head, static_cast<std::int64_t>(d));
    store(to, at, (accumulate ? load(to, at) : 0.0) + factor * sums[d]);
  }
}

/// Zeros, also where no request owns a row.
inline void clear_gradient(const Tensor& gradient) {
  for (std::int64_t row = 0; row < gradient.shape[0]; ++row) {
    for (std::int64_t head = 0; head < gradient.shape[1]; ++head) {
      for (std::int64_t d = 0; d < gradient.shape[2]; ++d)
        store(gradient, offset(gradient, row, head, d), 0.0);
    }
  }
}

}  // namespace msa::reference
