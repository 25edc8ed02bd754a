// SPDX-License-Identifier: MIT
// A view of memory that the caller owns: pointer, dtype, device, shape and strides. Nothing here
// allocates memory for elements.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "msa/export.h"

namespace msa {

enum class DType : std::uint8_t {
  F32,
  F16,
  BF16,
  I32,
  I64,
  E4M3,  // queries, keys and values, and scales of groups; no infinities
  I8,    // the filter of index keys alone
  // Keys and values alone: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. Two in a byte, the one
  // of the even element in the low half: innermost extents are even, and so are all other strides.
  E2M1,
};

/// Bits of one element: 32, 16, ... 4.
MSA_API int item_bits(DType dtype) noexcept;
/// Bytes that so many elements fill, one behind the other; a byte begun counts whole.
inline std::int64_t size_in_bytes(DType dtype, std::int64_t elements) noexcept {
  const std::int64_t bits = item_bits(dtype);
  return elements / 8 * bits + (elements % 8 * bits + 7) / 8;
}
/// "f32", "f16", "bf16", "i32", ...
MSA_API const char* to_string(DType dtype) noexcept;

enum class DeviceType : std::uint8_t { Cpu, Cuda };

struct Device {
  DeviceType type = DeviceType::Cpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

/// "cpu", "cuda:0".
MSA_API std::string to_string(const Device& device);

inline constexpr int kMaxRank = 4;

/// Strides count elements. A default-constructed Tensor is "not given". Inputs are never written,
/// so views of const memory drop their const here, as in DLPack.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::F32;
  Device device{};
  int rank = 0;                                 // 0: not given
  std::array<std::int64_t, kMaxRank> shape{};   // shape[0 .. rank)
  std::array<std::int64_t, kMaxRank> stride{};  // in elements

  explicit operator bool() const noexcept { return rank != 0; }
  friend bool operator==(const Tensor&, const Tensor&) = default;
};

/// A view with row-major strides. Throws Error for a rank outside 1 to kMaxRank or a negative
/// extent.
MSA_API Tensor make_tensor(const void* data, DType dtype, std::initializer_list<std::int64_t> shape,
                           Device device = {});
/// The same with strides of its own.
MSA_API Tensor make_tensor(const void* data, DType dtype, std::initializer_list<std::int64_t> shape,
                           std::initializer_list<std::int64_t> stride, Device device = {});
/// "bf16[64, 8, 128] strides (1024, 128, 1) on cpu".
MSA_API std::string to_string(const Tensor& tensor);

}  // namespace msa
