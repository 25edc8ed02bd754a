// SPDX-License-Identifier: MIT
// What the oracle and the plain computations said about one case. They do not depend on who is
// under test, so a case that runs on several instruction sets asks them once.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "testkit/compare_gradients.h"
#include "testkit/oracle.h"

namespace msa::testkit {

/// Errors of the plain computation against the oracle, by query head of a KV head.
struct PlainErrors {
  std::vector<double> out{};
  std::vector<double> lse{};  // empty where nobody asks for it
  // The row takes one key: every head gives its value, with the same rounding.
  bool one_key = false;
};

/// Of one operation on all rows of the case.
struct Remembered {
  Remembered(const Problem& problem, const Operands& operands);

  /// Empty until they are worked out. Rows may be filled in at the same time.
  PlainErrors& marks(std::int64_t row, std::int64_t kv_head) {
    return marks_[static_cast<std::size_t>(row * kv_heads_ + kv_head)];
  }

  Answer answer;
  std::optional<GradientMarks> gradient_marks{};  // of a backward pass, once they are worked out

 private:
  friend class OracleMemory;
  std::vector<std::int32_t> lists_;  // that attention was computed over
  std::int64_t kv_heads_ = 0;
  std::vector<PlainErrors> marks_;
};

/// For one case. Block lists that a call selected itself may differ from the last one's: what hangs
/// on them is then worked out again.
class OracleMemory {
 public:
  Remembered& of(const Problem& problem, const Operands& operands);

 private:
  static constexpr std::size_t kOps = static_cast<std::size_t>(kLastOp) + 1;
  std::array<std::unique_ptr<Remembered>, kOps> of_op_{};
};

}  // namespace msa::testkit
