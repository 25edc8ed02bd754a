// SPDX-License-Identifier: MIT
// One row of scores or of a selection against the oracle: as sets, exactly where scores are exact,
// else with swaps only within the rounding error of the k-th score.
#pragma once

#include <cstdint>
#include <vector>

#include "testkit/findings.h"
#include "testkit/oracle.h"
#include "testkit/plain.h"

namespace msa::testkit {

class SelectionComparison {
 public:
  SelectionComparison(const Problem& problem, const Operands& operands, bool exact_scores)
      : p_(problem), o_(operands), exact_scores_(exact_scores) {}

  /// Block maxima, scores, ids and chosen scores of one row, every head that the answer holds.
  void row(const CallRow& row, const Answer& answer, Findings& found) const;

 private:
  /// Ids up to the first -1, and their scores where somebody asked for them.
  struct Listed {
    std::vector<std::int32_t> ids{};
    std::vector<float> scores{};
  };

  const Tensor& score_queries() const { return p_.op == Op::DenseAttention ? o_.q : o_.index_q; }
  KeyRows score_keys() const {
    return p_.op == Op::DenseAttention ? key_rows(p_, o_) : index_rows(p_, o_);
  }
  void candidates_row(const CallRow& row, Findings& found) const;
  std::int64_t key_head(std::int64_t head) const;
  ScoreBound bound(const CallRow& row, std::int64_t head, std::int64_t id) const;
  void check_score(const CallRow& row, std::int64_t head, std::int64_t id, double expected,
                   double given, const Place& where, Findings& found) const;
  void score_row(const CallRow& row, const char* name, const Tensor& given, const Tensor& expected,
                 std::int64_t at, std::int64_t first, Findings& found) const;
  static Listed read_list(const Tensor& ids, const Tensor& scores, std::int64_t row,
                          std::int64_t head);
  bool check_form(const CallRow& row, std::int64_t head, const Listed& list, Findings& found) const;
  void selection_row(const CallRow& row, std::int64_t head, const Operands& e, std::int64_t at,
                     std::int64_t h, Findings& found) const;
  void check_codes(const CallRow& row, std::int64_t head, const Listed& given,
                   const Listed& expected, Findings& found) const;
  void check_swaps(const CallRow& row, std::int64_t head, const Listed& given,
                   const Listed& expected, Findings& found) const;

  const Problem& p_;
  const Operands& o_;
  bool exact_scores_;
};

}  // namespace msa::testkit
