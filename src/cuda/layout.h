// SPDX-License-Identifier: MIT
// How a workspace is cut into arrays: planning takes pieces one after the other and keeps their
// offsets, a run adds the base. The status word is always the first piece.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/params.h"
#include "msa/attention.h"

namespace msa::cuda {

/// An array of T in the workspace.
template <class T>
struct Piece {
  std::size_t offset = 0;
  T* in(void* workspace) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(workspace) + offset);
  }
};

class Layout {
 public:
  Layout() = default;
  /// Begins at `bytes`: for pieces that are never in use together with another layout's behind it.
  explicit Layout(std::size_t bytes) : bytes_(bytes) {}

  template <class T>
  Piece<T> take(std::int64_t count) {
    const Piece<T> piece{bytes_};
    const std::size_t size = static_cast<std::size_t>(count) * sizeof(T);
    bytes_ += (size + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
    return piece;
  }
  /// Room for another layout's pieces, which end at `bytes`.
  void extend(std::size_t bytes) { bytes_ = bytes > bytes_ ? bytes : bytes_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = kWorkspaceAlignment;  // the status word
};

inline constexpr Piece<StatusWord> kStatus{0};

}  // namespace msa::cuda
