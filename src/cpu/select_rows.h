// SPDX-License-Identifier: MIT
// What selections share around their kernels: the requests of a call, what a query row takes
// without looking and what it may choose from, and the writing of a finished row.
#pragma once

#include <cstdint>
#include <span>

#include "core/call.h"
#include "core/geometry.h"
#include "cpu/candidates.h"
#include "cpu/stage.h"

namespace msa::cpu {

/// Blocks of one query row by global id: `initial` and `local` are forced, `candidates` lie between
/// them.
struct RowChoice {
  core::Range initial{};
  core::Range candidates{};
  core::Range local{};
  std::int64_t room = 0;  // candidates to keep
  bool takes_all() const { return room == candidates.size(); }
};

RowChoice choose_row(const core::Request& request, std::int64_t token, const Problem& problem);

/// Reads all requests of a call into `requests`, which has room for problem.bounds.batch; returns
/// those there are.
std::span<core::Request> read_requests(const Problem& problem, const core::Call& call,
                                       core::Request* requests);

/// The request that owns query row `row`; null: a padding row.
const core::Request* request_of_row(std::span<const core::Request> requests, std::int64_t row);

/// Writes the lists of one call: ids ascending, then -1; scores +inf for forced blocks, then -inf.
class SelectionWriter {
 public:
  SelectionWriter(const core::Call& call, Rows rows)
      : ids_(call.block_ids), scores_(call.chosen_scores), rows_(rows) {}

  /// `chosen` is sorted by id. With takes_all() and no scores wanted it is not read: all candidates
  /// are taken.
  void write(std::int64_t row, std::int64_t head, const RowChoice& choice,
             std::span<const Candidate> chosen) const;
  void write_empty(std::int64_t row) const;  // every head
  bool wants_scores() const { return static_cast<bool>(scores_); }

 private:
  Tensor ids_, scores_;
  Rows rows_;
};

}  // namespace msa::cpu
