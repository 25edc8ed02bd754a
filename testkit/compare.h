// SPDX-License-Identifier: MIT
// Comparison of a call's outputs with the oracle, by the contract's tolerances. Works on any call
// in host memory, generated or loaded from a file. Large calls are compared on sampled rows: each
// becomes a problem of one row for the oracle, so that a million tokens take seconds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "testkit/operands.h"
#include "testkit/oracle_memory.h"

namespace msa::testkit {

struct CompareOptions {
  /// Index vectors whose dot products are exact: selections must be equal.
  bool exact_scores = false;
  /// Rows and heads that err independently of each other: their errors may not lean to one side.
  bool independent_errors = false;
  /// Keys that are nearer to each other than to 0: what rounding takes from gradients of scores has
  /// to come back to dq.
  bool keys_alike = false;
  /// Multiply-adds of the oracle; above, rows are sampled.
  double max_work = 4e8;
  std::int64_t sample_rows = 12;
  /// Of the sample.
  std::uint64_t seed = 1;
  /// Keeps the oracle's answers to whole calls for the next comparison of the same case.
  OracleMemory* memory = nullptr;
};

struct Report {
  bool ok = true;
  std::string what{};     // the first thing that is wrong, with its place and both values
  std::int64_t rows = 0;  // of the call
  std::int64_t rows_compared = 0;
  double worst_error = 0;  // largest |error| of `out`
  double worst_share = 0;  // largest error / tolerance, of everything compared
  std::string worst_place{};
  /// Mean errors of `out` towards plus infinity and away from zero, in standard errors (lean.h).
  double upward = 0, outward = 0;
};

/// `problem` is the one that was planned; `operands` hold its inputs and what it wrote.
Report compare(const Problem& problem, const Operands& operands,
               const CompareOptions& options = {});

/// The twin rule: the first element of a 16-bit output that is not the f32 output of the same call
/// rounded to nearest even, or "". No oracle is needed for it.
std::string other_rounding(const Tensor& out, const Tensor& wide);

/// Rows of the call that compare() reads, ascending: all of them, or its sample. Callers whose
/// outputs lie elsewhere need only these in host memory.
std::vector<std::int64_t> rows_to_compare(const Problem& problem, const Operands& operands,
                                          const CompareOptions& options = {});
}  // namespace msa::testkit
