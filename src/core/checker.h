// SPDX-License-Identifier: MIT
// Checks the tensors of one call, one argument after the other, and outputs against all that came
// before them. Knows nothing of operations; allocates nothing unless it throws.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "core/geometry.h"
#include "msa/attention.h"

namespace msa::core {

/// What one extent may be.
struct Extent {
  std::int64_t low = 0;
  std::int64_t high = kNoLimit;
};

constexpr Extent exactly(std::int64_t n) { return {n, n}; }
constexpr Extent at_least(std::int64_t n) { return {n, kNoLimit}; }
constexpr Extent at_most(std::int64_t n) { return {0, n}; }

struct Shape {
  std::array<Extent, kMaxRank> extent{};
  int rank = 0;
};

template <class... Extents>
constexpr Shape shape(Extents... extents) {
  return {{extents...}, static_cast<int>(sizeof...(extents))};
}

enum class Innermost { Dense, Strided };  // must the last stride be 1?

/// What an argument must be.
struct Expected {
  DType dtype = DType::F32;
  Shape shape{};
  Innermost innermost = Innermost::Strided;
};

/// An argument by name; `part` counts in lists of parts, else it is -1.
struct Argument {
  const char* name = "";
  int part = -1;
  const Tensor* tensor = nullptr;

  std::string text() const;
};

/// "rank 3", and where a batch dimension stands in front, that there is none.
std::string rank_text(int expected, int given);

/// Throws InvalidArgument for this argument.
[[noreturn]] void reject(const Argument& argument, const std::string& where,
                         const std::string& expected, const std::string& given);

class Checker {
 public:
  explicit Checker(Device device) : device_(device) {}

  void input(const Argument& argument, const Expected& expected);
  void input(const char* name, const Tensor& tensor, const Expected& expected) {
    input({name, -1, &tensor}, expected);
  }
  /// Checks a tensor of which only slices are kept.
  void whole(const Argument& argument, const Expected& expected) const {
    check(argument, expected);
  }
  /// All inputs come before the first output. `twin`, where given, is an input that the output may
  /// be exactly.
  void output(const char* name, const Tensor& tensor, const Expected& expected,
              const Tensor* twin = nullptr);
  /// Comes last.
  void workspace(Workspace workspace, std::size_t needed) const;

 private:
  void check(const Argument& argument, const Expected& expected) const;

  Device device_;
  std::array<Argument, 2 * kMaxParts + 20> kept_{};
  std::size_t count_ = 0;
};

}  // namespace msa::core
