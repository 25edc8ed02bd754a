// SPDX-License-Identifier: MIT
// Cuts typed arrays out of a workspace. Run over a null base it only counts, so a plan and its run
// share one layout.
#pragma once

#include <cstddef>
#include <cstdint>

namespace msa::cpu {

class Scratch {
 public:
  explicit Scratch(std::byte* base) : base_(base) {}

  /// `count` elements on cache lines of their own; null while counting.
  template <class T>
  T* take(std::int64_t count) {
    const std::size_t at = used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + kLine - 1) / kLine * kLine;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  std::size_t used() const { return used_; }

 private:
  static constexpr std::size_t kLine = 64;
  std::byte* base_;
  std::size_t used_ = 0;
};

/// Bytes that `take(Scratch&)` takes.
template <class Take>
std::size_t bytes_of(Take take) {
  Scratch count(nullptr);
  take(count);
  return count.used();
}

}  // namespace msa::cpu
