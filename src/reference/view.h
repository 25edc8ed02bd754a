// SPDX-License-Identifier: MIT
// Elements by index, and the keys of a request whether they lie in ragged rows or in pages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "core/geometry.h"
#include "core/host_tensor.h"
#include "msa/problem.h"
#include "reference/number.h"

namespace msa::reference {

inline std::int64_t offset(const Tensor& t, std::int64_t i, std::int64_t j, std::int64_t l = 0) {
  return i * t.stride[0] + j * t.stride[1] + l * t.stride[2];
}

inline void store_i32(const Tensor& t, std::int64_t offset, std::int64_t value) {
  static_cast<std::int32_t*>(t.data)[offset] = static_cast<std::int32_t>(value);
}

/// What a code stands for: its product with the scale, rounded to fp32. In fp64 it is exact.
inline double scaled(double code, double scale) { return static_cast<float>(code * scale); }

/// The same, rounded once more to e4m3.
inline double rounded_to_e4m3(double value) { return ReadE4M3::read(encode_e4m3(value)); }

/// Scales of the groups of one row and head.
struct GroupScales {
  Tensor tensor{};
  std::int64_t begin = 0;  // element offset of the first group's
  std::int64_t step = 0;
  std::int64_t group = 0;
  double global = 1;
  bool rounded = false;

  /// Of element d.
  double scale_of(std::int64_t d) const { return load(tensor, begin + d / group * step) * global; }
  double value(double code, double scale) const {
    const double product = scaled(code, scale);
    return rounded ? rounded_to_e4m3(product) : product;
  }
};

/// One head vector: elements d = 0 .. of a row.
struct Vector {
  Tensor tensor{};
  std::int64_t begin = 0;  // element offset of d = 0; the innermost stride is 1
  std::optional<double> scale{};
  std::optional<GroupScales> groups{};
  double operator[](std::int64_t d) const {
    double value = 0;
    read(d, 1, &value);
    return value;
  }
  /// Elements first to first + count - 1.
  void read(std::int64_t first, std::int64_t count, double* to) const {
    if (groups) return read_groups(first, count, to);
    with_reader(tensor.dtype, [&](auto reader) {
      const auto* const from =
          static_cast<const typename decltype(reader)::Storage*>(tensor.data) + begin + first;
      for (std::int64_t d = 0; d < count; ++d) {
        const double code = reader.read(from[d]);
        to[d] = scale ? scaled(code, *scale) : code;
      }
    });
  }

 private:
  void read_groups(std::int64_t first, std::int64_t count, double* to) const {
    double scale_of_group = 0;
    for (std::int64_t d = first; d < first + count; ++d) {
      if (d == first || d % groups->group == 0) scale_of_group = groups->scale_of(d);
      to[d - first] = groups->value(read_e2m1(tensor.data, begin + d), scale_of_group);
    }
  }
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
  const Tensor* scales = nullptr;  // where the format says that there are any
  const Tensor* global = nullptr;
  Format format{};

  Vector at(std::int64_t key, std::int64_t head) const {
    if (!page_table) {
      const std::int64_t row = k_begin + key;
      return {tensor, offset(tensor, row, head), scale_at(0, row, head), groups_at(0, row, head)};
    }
    const std::int64_t page_size = tensor.shape[1];
    const std::int64_t page = core::read_i32(page_table, request, key / page_size);
    const std::int64_t slot = key % page_size;
    return {tensor, offset(tensor, page, slot, head), scale_at(page, slot, head),
            groups_at(page, slot, head)};
  }

 private:
  std::optional<double> scale_at(std::int64_t page, std::int64_t row, std::int64_t head) const {
    switch (format.scale) {
      case Scale::None:
      case Scale::Group:
      case Scale::GroupTensor:
        break;
      case Scale::Tensor:
        return load(*scales, 0);
      case Scale::Head:
        return load(*scales, head * scales->stride[0]);
      case Scale::Page:
        return load(*scales, offset(*scales, page, head));
      case Scale::Token:
        return load(*scales,
                    page_table ? offset(*scales, page, row, head) : offset(*scales, row, head));
    }
    return {};
  }

  std::optional<GroupScales> groups_at(std::int64_t page, std::int64_t row,
                                       std::int64_t head) const {
    if (format.scale != Scale::Group && format.scale != Scale::GroupTensor) return {};
    const std::int64_t begin =
        page_table ? offset(*scales, page, row, head) : offset(*scales, row, head);
    return GroupScales{.tensor = *scales,
                       .begin = begin,
                       .step = scales->stride[static_cast<std::size_t>(scales->rank - 1)],
                       .group = format.group,
                       .global = format.scale == Scale::GroupTensor ? load(*global, 0) : 1.0,
                       .rounded = format.rounded};
  }
};

/// Of a plain vector and one that may have a scale.
inline double dot(const Vector& x, const Vector& y, std::int64_t dim) {
  if (y.groups) {
    constexpr std::int64_t kAhead = 64;
    double sum = 0, a[kAhead], b[kAhead];
    for (std::int64_t first = 0; first < dim; first += kAhead) {
      const std::int64_t count = std::min(kAhead, dim - first);
      x.read(first, count, a);
      y.read(first, count, b);
      for (std::int64_t d = 0; d < count; ++d) sum += a[d] * b[d];
    }
    return sum;
  }
  return with_reader(x.tensor.dtype, [&](auto left) {
    return with_reader(y.tensor.dtype, [&](auto right) {
      const auto* const a =
          static_cast<const typename decltype(left)::Storage*>(x.tensor.data) + x.begin;
      const auto* const b =
          static_cast<const typename decltype(right)::Storage*>(y.tensor.data) + y.begin;
      double sum = 0;
      for (std::int64_t d = 0; d < dim; ++d) {
        const double code = right.read(b[d]);
        sum += left.read(a[d]) * (y.scale ? scaled(code, *y.scale) : code);
      }
      return sum;
    });
  });
}

}  // namespace msa::reference
