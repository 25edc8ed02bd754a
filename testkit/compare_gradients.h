// SPDX-License-Identifier: MIT
// Gradients against the oracle: each row and head of dq, dk and dv may be off by twice the error of
// a plain computation that rounds weights and the gradients of scores to the storage type, by what
// fp32 arithmetic costs, and by an ulp of its largest number. What rounding took may come back to
// dq in some tiles of keys, and counts where that is worst. Where all keys are alike it has to.
#pragma once

#include <vector>

#include "testkit/findings.h"
#include "testkit/oracle.h"

namespace msa::testkit {

/// What no computation can be blamed for, by row and head of each gradient.
struct GradientMarks {
  std::vector<double> dq{}, dk{}, dv{};
  std::vector<double> loss{}, d_index_q{}, d_index_k{};  // index_loss
  double plain_dq = 0;  // sum of squares of the plain computation's errors
};

GradientMarks marks_of_gradients(const Problem& problem, const Operands& operands,
                                 const Answer& answer);

/// Gradients of keys from `first_key` on.
void compare_gradients(const Operands& operands, const Answer& answer, const GradientMarks& marks,
                       Findings& found, std::int64_t first_key = 0);

/// Fails where dq, of keys that are alike, is no nearer to the truth than a computation that gives
/// nothing back.
void expect_given_back(const Operands& operands, const Answer& answer, const GradientMarks& marks,
                       Findings& found);

}  // namespace msa::testkit
