// SPDX-License-Identifier: MIT
// Matching cases against support tables.
#include "testkit/support.h"

#include <algorithm>
#include <fstream>
#include <sstream>

namespace msa::testkit {

SupportTable::SupportTable(std::string_view text, const std::string& name) {
  std::istringstream lines{std::string(text)};
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    std::istringstream words(line.substr(0, line.find('#')));
    std::vector<Condition> conditions;
    for (std::string word; words >> word;) {
      const std::size_t equals = word.find('=');
      if (equals == std::string::npos) {
        throw CaseError(name + ":" + std::to_string(number) + ": expected key=value, got '" + word +
                        "'");
      }
      const std::string key = word.substr(0, equals);
      case_value(Case{}, key);  // throws for a key that no case has
      conditions.push_back({key, alternatives(std::string_view(word).substr(equals + 1))});
    }
    if (!conditions.empty()) lines_.push_back(std::move(conditions));
  }
}

SupportTable SupportTable::read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) throw CaseError("cannot read " + path);
  return SupportTable(text.view(), path);
}

bool SupportTable::contains(const Case& spec) const {
  const auto holds = [&](const Condition& condition) {
    const std::string value = case_value(spec, condition.key);
    return std::find(condition.values.begin(), condition.values.end(), value) !=
           condition.values.end();
  };
  return std::any_of(lines_.begin(), lines_.end(), [&](const std::vector<Condition>& line) {
    return std::all_of(line.begin(), line.end(), holds);
  });
}

std::string Totals::text() const {
  return std::to_string(passed) + " passed, " + std::to_string(failed) + " failed, " +
         std::to_string(rejected) + " rejected (outside the support table)";
}

void count(Outcome& outcome, const Case& spec, const SupportTable* table, Totals& totals) {
  if (outcome.result == Result::Unmade) outcome.result = Result::Failed;
  const bool must = table != nullptr && table->contains(spec);
  if (outcome.result == Result::Rejected && must) {
    outcome.result = Result::Failed;
    outcome.reason = "rejected inside the support table: " + outcome.reason;
  }
  if (outcome.result == Result::Passed) ++totals.passed;
  if (outcome.result == Result::Failed) ++totals.failed;
  if (outcome.result == Result::Rejected) ++totals.rejected;
}

}  // namespace msa::testkit
