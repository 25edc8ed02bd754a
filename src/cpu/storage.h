// SPDX-License-Identifier: MIT
// The storage types that this backend reads and writes, one value at a time. Every choice by dtype
// is a switch that names all dtypes, here or in generic/: a new one is a warning wherever it has no
// answer yet.
#pragma once

#include <cstdint>

#include "cpu/convert.h"
#include "msa/tensor.h"

namespace msa::cpu {

/// Planning has rejected the dtype: a defect where it comes.
[[noreturn]] void unserved(DType dtype);

struct F32Storage {
  static constexpr DType kType = DType::F32;
  using T = float;
  static float read(float x) { return x; }
  static float write(float x) { return x; }
};
struct F16Storage {
  static constexpr DType kType = DType::F16;
  using T = std::uint16_t;
  static float read(std::uint16_t x) { return f16_to_float(x); }
  static std::uint16_t write(float x) { return float_to_f16(x); }
};
struct Bf16Storage {
  static constexpr DType kType = DType::BF16;
  using T = std::uint16_t;
  static float read(std::uint16_t x) { return bf16_to_float(x); }
  static std::uint16_t write(float x) { return float_to_bf16(x); }
};

/// f(storage) for a dtype that this backend serves.
template <class F>
auto with_storage(DType dtype, const F& f) {
  switch (dtype) {
    case DType::F32:
      return f(F32Storage{});
    case DType::F16:
      return f(F16Storage{});
    case DType::BF16:
      return f(Bf16Storage{});
    case DType::I32:
    case DType::I64:
    case DType::E4M3:
    case DType::I8:
    case DType::E2M1:
      break;
  }
  unserved(dtype);
}

}  // namespace msa::cpu
