// SPDX-License-Identifier: MIT
// A row-major array of numbers with a tensor view, for cases written by hand.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

#include "msa/tensor.h"

namespace msa::test {

template <class T>
class Grid {
 public:
  explicit Grid(std::initializer_list<std::int64_t> shape, T value = T{}) : shape_(shape) {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    data_.assign(static_cast<std::size_t>(count) + 1, value);  // never null
  }
  Grid(std::initializer_list<std::int64_t> shape, std::initializer_list<T> values) : Grid(shape) {
    std::size_t i = 0;
    for (const T& value : values) data_[i++] = value;
  }
  T& operator()(std::int64_t i, std::int64_t j = 0, std::int64_t l = 0, std::int64_t m = 0) {
    return data_[static_cast<std::size_t>(index({i, j, l, m}))];
  }
  Tensor tensor() const {
    constexpr DType kType = sizeof(T) == 2             ? DType::BF16
                            : std::is_same_v<T, float> ? DType::F32
                                                       : DType::I32;
    Tensor t = make_tensor(data_.data(), kType, {1});
    t.rank = static_cast<int>(shape_.size());
    std::int64_t stride = 1;
    for (std::size_t i = shape_.size(); i-- > 0;) {
      t.shape[i] = shape_[i];
      t.stride[i] = stride;
      stride *= shape_[i];
    }
    return t;
  }
  std::vector<T> values() const { return {data_.begin(), data_.end() - 1}; }
  void fill_normal(std::mt19937& random) {
    std::normal_distribution<float> normal;
    for (T& x : data_) x = static_cast<T>(normal(random));
  }

 private:
  std::int64_t index(std::initializer_list<std::int64_t> at) const {
    std::int64_t offset = 0;
    auto i = at.begin();
    for (const std::int64_t extent : shape_) offset = offset * extent + *i++;
    return offset;
  }
  std::vector<std::int64_t> shape_;
  std::vector<T> data_;
};

using Floats = Grid<float>;
using Ints = Grid<std::int32_t>;

}  // namespace msa::test
