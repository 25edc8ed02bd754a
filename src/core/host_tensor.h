// SPDX-License-Identifier: MIT
// Elements of index tensors in host memory, with 64-bit offsets. The tensors have passed
// validate_call.
#pragma once

#include <cstdint>

#include "msa/tensor.h"

namespace msa::core {

inline std::int64_t read_i32(const Tensor& t, std::int64_t i) {
  return static_cast<const std::int32_t*>(t.data)[i * t.stride[0]];
}
inline std::int64_t read_i32(const Tensor& t, std::int64_t i, std::int64_t j) {
  return static_cast<const std::int32_t*>(t.data)[i * t.stride[0] + j * t.stride[1]];
}
inline std::int64_t read_i32(const Tensor& t, std::int64_t i, std::int64_t j, std::int64_t l) {
  return static_cast<const std::int32_t*>(
      t.data)[i * t.stride[0] + j * t.stride[1] + l * t.stride[2]];
}

}  // namespace msa::core
