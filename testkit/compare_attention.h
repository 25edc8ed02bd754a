// SPDX-License-Identifier: MIT
// One row of attention, or of merged states, against the oracle: finite or not first, then values
// within twice the error of the plain computations.
#pragma once

#include <cstdint>

#include "testkit/findings.h"
#include "testkit/oracle_memory.h"
#include "testkit/plain.h"

namespace msa::testkit {

class AttentionComparison {
 public:
  /// `known` keeps the plain computation's errors, where there is one.
  AttentionComparison(const Problem& problem, const Operands& operands, Remembered* known)
      : p_(problem), o_(operands), known_(known) {}

  /// `out` and `lse` of one row, every head that the answer holds.
  void row(const CallRow& row, const Answer& answer, Findings& found) const;

 private:
  KeyList keys_of(const CallRow& row, std::int64_t kv_head) const;
  PlainErrors plain_errors(const CallRow& row, std::int64_t kv_head, const Tensor& out,
                           const Tensor& lse, std::int64_t first, Findings& found) const;
  void attention_row(const CallRow& row, std::int64_t kv_head, const Tensor& out, const Tensor& lse,
                     std::int64_t first, Findings& found) const;
  void merge_row(const CallRow& row, const Operands& expected, std::int64_t at,
                 Findings& found) const;
  /// `independent`: of other heads' errors.
  void output_row(const CallRow& row, std::int64_t head, const float* expected, double plain_error,
                  bool independent, Findings& found) const;
  void add_lean(const float* expected, const float* given, double tolerance, Findings& found) const;
  double rounding(double largest) const;
  double distance(const float* a, const float* b) const;

  const Problem& p_;
  const Operands& o_;
  Remembered* known_;
};

}  // namespace msa::testkit
