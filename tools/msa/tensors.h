// SPDX-License-Identifier: MIT
// Memory of tensors for the commands: zeroed, aligned, owned, viewed as msa::Tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "msa/tensor.h"

namespace msa::cli {

inline constexpr std::size_t kAlignment = 256;

/// Zeroed bytes at a multiple of kAlignment. The pages of a large buffer are mapped when they are
/// first touched.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::uint64_t bytes);
  void* data() const noexcept { return data_.get(); }
  std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  struct Unmap {
    std::uint64_t bytes = 0;
    void operator()(void* p) const noexcept;
  };
  std::unique_ptr<void, Unmap> data_{nullptr, Unmap{}};
  std::uint64_t bytes_ = 0;
};

/// A tensor with its memory.
struct OwnedTensor {
  OwnedTensor() = default;
  OwnedTensor(DType dtype, const std::vector<std::int64_t>& shape);
  explicit operator bool() const noexcept { return static_cast<bool>(view); }

  Buffer memory;
  Tensor view{};
};

/// Row-major view; the shape has 1 to kMaxRank extents.
Tensor view_of(const void* data, DType dtype, const std::vector<std::int64_t>& shape);

}  // namespace msa::cli
