// SPDX-License-Identifier: MIT
// The steps of MiniMax Sparse Attention for one query row and one head, in double precision: score
// blocks, select blocks, attend, merge. The oracle of every other backend. Memory is the caller's.
#pragma once

#include <cstdint>
#include <span>

#include "core/geometry.h"
#include "reference/view.h"

namespace msa::reference {

/// A block that may be chosen.
struct Candidate {
  std::int64_t id = 0;  // global
  float score = 0;
  bool forced = false;
};

/// Score of a block: the largest dot product of the query with its visible keys, those of the
/// range. NaN counts as -inf.
float block_score(const Vector& query, const Keys& keys, std::int64_t head, core::Range visible,
                  std::int64_t dim);

/// Keeps the k best candidates in ascending order of id and returns them, a prefix of the span.
std::span<Candidate> select(std::span<Candidate> candidates, std::int64_t k);

/// What one query row gives for one head.
struct RowResult {
  double lse = 0;
  bool zero = false;  // nothing to see: o = 0
  bool nan = false;   // a score that is NaN or +inf: o = NaN
};

/// Turns scaled scores into softmax weights, in place. Merging partial states is the same with
/// their lses as scores.
RowResult softmax(std::span<double> scores);

}  // namespace msa::reference
