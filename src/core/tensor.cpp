// SPDX-License-Identifier: MIT
// Tensor views: how they are made and printed.
#include "msa/tensor.h"

#include <algorithm>

#include "core/fail.h"
#include "msa/attention.h"

namespace msa {

int item_bits(DType dtype) noexcept {
  switch (dtype) {
    case DType::F32:
      return 32;
    case DType::F16:
      return 16;
    case DType::BF16:
      return 16;
    case DType::I32:
      return 32;
    case DType::I64:
      return 64;
    case DType::E4M3:
      return 8;
    case DType::I8:
      return 8;
    case DType::E2M1:
      return 4;
  }
  return 0;
}

const char* to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::F32:
      return "f32";
    case DType::F16:
      return "f16";
    case DType::BF16:
      return "bf16";
    case DType::I32:
      return "i32";
    case DType::I64:
      return "i64";
    case DType::E4M3:
      return "e4m3";
    case DType::I8:
      return "i8";
    case DType::E2M1:
      return "e2m1";
  }
  return "unknown";
}

std::string to_string(const Device& device) {
  switch (device.type) {
    case DeviceType::Cpu:
      return device.index == 0 ? "cpu" : "cpu:" + std::to_string(device.index);
    case DeviceType::Cuda:
      return "cuda:" + std::to_string(device.index);
  }
  return "unknown";
}

namespace {

// "[2, 3]" or "(3, 1)".
std::string list(const std::array<std::int64_t, kMaxRank>& values, int count, char open,
                 char close) {
  std::string text(1, open);
  for (int i = 0; i < std::min(count, kMaxRank); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(values[static_cast<std::size_t>(i)]);
  }
  return text + close;
}

Tensor shaped(const void* data, DType dtype, std::initializer_list<std::int64_t> shape,
              Device device) {
  if (shape.size() == 0 || shape.size() > kMaxRank) {
    core::fail(ErrorCode::InvalidArgument, "shape", "", "1 to 4 extents",
               std::to_string(shape.size()));
  }
  for (const std::int64_t extent : shape) {
    if (extent < 0) {
      core::fail(ErrorCode::InvalidArgument, "shape", "", "extents of at least 0",
                 std::to_string(extent));
    }
  }
  Tensor tensor{.data = const_cast<void*>(data),
                .dtype = dtype,
                .device = device,
                .rank = static_cast<int>(shape.size())};
  std::copy(shape.begin(), shape.end(), tensor.shape.begin());
  return tensor;
}

}  // namespace

Tensor make_tensor(const void* data, DType dtype, std::initializer_list<std::int64_t> shape,
                   Device device) {
  Tensor tensor = shaped(data, dtype, shape, device);
  std::int64_t stride = 1;
  for (int i = tensor.rank - 1; i >= 0; --i) {
    const std::size_t d = static_cast<std::size_t>(i);
    tensor.stride[d] = stride;
    // An empty extent counts as one, so that the strides of empty tensors stay usual ones.
    if (__builtin_mul_overflow(stride, std::max<std::int64_t>(tensor.shape[d], 1), &stride)) {
      core::fail(ErrorCode::InvalidArgument, "shape", "", "a product of extents below 2^63",
                 list(tensor.shape, tensor.rank, '[', ']'));
    }
  }
  return tensor;
}

Tensor make_tensor(const void* data, DType dtype, std::initializer_list<std::int64_t> shape,
                   std::initializer_list<std::int64_t> stride, Device device) {
  Tensor tensor = shaped(data, dtype, shape, device);
  if (stride.size() != shape.size()) {
    core::fail(ErrorCode::InvalidArgument, "stride", "",
               std::to_string(shape.size()) + " strides, as many as extents",
               std::to_string(stride.size()));
  }
  std::copy(stride.begin(), stride.end(), tensor.stride.begin());
  return tensor;
}

std::size_t Parts::size() const noexcept {
  if (!stacked_) return list_.size();
  return static_cast<std::size_t>(std::max<std::int64_t>(stacked_.shape[0], 0));
}

Tensor Parts::operator[](std::size_t i) const noexcept {
  if (!stacked_) return list_[i];
  Tensor part{.dtype = stacked_.dtype,
              .device = stacked_.device,
              .rank = std::clamp(stacked_.rank, 1, kMaxRank) - 1};
  // The address is a number until somebody has checked that it lies inside the address space.
  const auto offset = static_cast<std::uint64_t>(stacked_.stride[0]) * i *
                      static_cast<std::uint64_t>(item_bits(stacked_.dtype)) / 8;
  part.data = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(stacked_.data) + offset);
  for (std::size_t d = 0; d < static_cast<std::size_t>(part.rank); ++d) {
    part.shape[d] = stacked_.shape[d + 1];
    part.stride[d] = stacked_.stride[d + 1];
  }
  return part;
}

std::string to_string(const Tensor& tensor) {
  if (!tensor) return "none";
  if (tensor.rank < 0 || tensor.rank > kMaxRank) {
    return std::string(to_string(tensor.dtype)) + " of rank " + std::to_string(tensor.rank);
  }
  return to_string(tensor.dtype) + list(tensor.shape, tensor.rank, '[', ']') + " strides " +
         list(tensor.stride, tensor.rank, '(', ')') + " on " + to_string(tensor.device);
}

}  // namespace msa
