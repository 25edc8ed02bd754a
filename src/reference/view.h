// SPDX-License-Identifier: MIT
// Elements by index, and the keys of a request whether they lie in ragged rows or in pages.
#pragma once

#include <cstdint>

#include "core/geometry.h"
#include "core/host_tensor.h"
#include "reference/number.h"

namespace msa::reference {

inline std::int64_t offset(const Tensor& t, std::int64_t i, std::int64_t j, std::int64_t l = 0) {
  return i * t.stride[0] + j * t.stride[1] + l * t.stride[2];
}

inline void store_i32(const Tensor& t, std::int64_t offset, std::int64_t value) {
  static_cast<std::int32_t*>(t.data)[offset] = static_cast<std::int32_t>(value);
}

/// One head vector: elements d = 0 .. of a row.
struct Vector {
  Tensor tensor{};
  std::int64_t begin = 0;  // element offset of d = 0; the innermost stride is 1
  double operator[](std::int64_t d) const { return load(tensor, begin + d); }
};

inline Vector row_vector(const Tensor& t, std::int64_t row, std::int64_t head) {
  return {t, offset(t, row, head)};
}

/// Keys or values of one request.
struct Keys {
  const Tensor& tensor;      // [N, heads, dim] or [P, S, heads, dim]
  const Tensor& page_table;  // not given for ragged keys
  std::int64_t request = 0;
  std::int64_t k_begin = 0;

  Vector at(std::int64_t key, std::int64_t head) const {
    if (!page_table) return row_vector(tensor, k_begin + key, head);
    const std::int64_t page_size = tensor.shape[1];
    const std::int64_t page = core::read_i32(page_table, request, key / page_size);
    return {tensor,
            page * tensor.stride[0] + key % page_size * tensor.stride[1] + head * tensor.stride[2]};
  }
};

/// Of two vectors of one dtype.
inline double dot(const Vector& x, const Vector& y, std::int64_t dim) {
  return with_reader(x.tensor.dtype, [&](auto reader) {
    using Storage = typename decltype(reader)::Storage;
    const Storage* const a = static_cast<const Storage*>(x.tensor.data) + x.begin;
    const Storage* const b = static_cast<const Storage*>(y.tensor.data) + y.begin;
    double sum = 0;
    for (std::int64_t d = 0; d < dim; ++d) sum += reader.read(a[d]) * reader.read(b[d]);
    return sum;
  });
}

}  // namespace msa::reference
