// SPDX-License-Identifier: MIT
// Support tables: what a backend must serve, as patterns in the case language
// (tests/support/*.txt). A rejection inside the table is a failure; outside, it is the backend's
// right.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "testkit/verify.h"

namespace msa::testkit {

class SupportTable {
 public:
  /// Throws CaseError for lines that are not patterns.
  explicit SupportTable(std::string_view text, const std::string& name = "support table");
  static SupportTable read(const std::string& path);

  /// A key and the values that it may have.
  struct Condition {
    std::string key;
    std::vector<std::string> values;
  };

  /// Whether the backend must serve the case.
  bool contains(const Case& spec) const;
  const std::vector<std::vector<Condition>>& lines() const { return lines_; }

 private:
  std::vector<std::vector<Condition>> lines_{};
};

/// Verdicts of a list of cases on one backend and instruction set.
struct Totals {
  std::int64_t passed = 0;
  std::int64_t failed = 0;
  std::int64_t rejected = 0;  // outside the table
  /// "1312 passed, 0 failed, 4 rejected (outside the support table)".
  std::string text() const;
};

/// Counts an outcome; a case that cannot be made is a failure of the list, and a rejection inside
/// the table (which may be null: none is known) becomes a failure.
void count(Outcome& outcome, const Case& spec, const SupportTable* table, Totals& totals);

}  // namespace msa::testkit
