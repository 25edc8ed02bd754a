// SPDX-License-Identifier: MIT
// Comparing scores and selections; see compare_selections.h.
#include "testkit/compare_selections.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "testkit/number.h"

namespace msa::testkit {

namespace {

std::string list_text(const std::vector<std::int32_t>& ids) {
  std::string text = "{";
  for (const std::int32_t id : ids) {
    if (text.size() > 1) text.append(" ");
    text.append(std::to_string(id));
  }
  return text.append("}");
}

}  // namespace

void SelectionComparison::row(const CallRow& row, const Answer& answer, Findings& found) const {
  const std::int64_t first = answer.part().kv_head_begin;
  const Operands& e = answer.operands();
  const std::int64_t at = row.row - answer.part().row_begin;
  if (o_.block_max) score_row(row, "block_max", o_.block_max, e.block_max, at, first, found);
  if (o_.scores) score_row(row, "scores", o_.scores, e.scores, at, first, found);
  if (!o_.block_ids) return;
  if (o_.candidates) candidates_row(row, found);
  for (std::int64_t h = 0; h < e.block_ids.shape[1]; ++h) {
    selection_row(row, first + h, e, at, h, found);
  }
}

/// A count is a statistic that backends may differ in, but never of more blocks than there are.
void SelectionComparison::candidates_row(const CallRow& row, Findings& found) const {
  const std::int64_t most = row.request->visible_blocks(row.i);
  for (std::int64_t h = 0; h < o_.candidates.shape[1]; ++h) {
    const std::int32_t count = int_at(o_.candidates, row.row, h);
    if (count >= -1 && count <= most) continue;
    found.fail(Place{"candidates", row, h}() + ": expected -1 to " + std::to_string(most) +
               ", got " + std::to_string(count));
  }
}

std::int64_t SelectionComparison::key_head(std::int64_t head) const {
  if (p_.op == Op::DenseAttention) return head / (p_.attention.heads_q / p_.attention.heads_kv);
  return head * p_.index.heads_k / p_.index.heads;
}
ScoreBound SelectionComparison::bound(const CallRow& row, std::int64_t head,
                                      std::int64_t id) const {
  return score_of_block(score_queries(), row.row, head, score_keys(), key_head(head), *row.request,
                        row.i, id);
}

/// A score against the oracle's; the tolerance is worked out only where the two differ visibly.
void SelectionComparison::check_score(const CallRow& row, std::int64_t head, std::int64_t id,
                                      double expected, double given, const Place& where,
                                      Findings& found) const {
  if (expected == given) return;
  if (kind_of(expected) != Kind::Finite || kind_of(given) != Kind::Finite || exact_scores_) {
    if (expected != given) found.fail(where() + both(expected, given, 0));
    return;
  }
  const double tolerance = bound(row, head, id).error + ulp(expected, DType::F32);
  check_number(found, expected, given, tolerance, where);
}

void SelectionComparison::score_row(const CallRow& row, const char* name, const Tensor& given,
                                    const Tensor& expected, std::int64_t at, std::int64_t first,
                                    Findings& found) const {
  const std::int64_t group =
      p_.op == Op::DenseAttention ? p_.attention.heads_q / p_.attention.heads_kv : 1;
  for (std::int64_t h = 0; h < expected.shape[1]; ++h) {
    const std::int64_t head = first * group + h;
    for (std::int64_t block = 0; block < given.shape[2]; ++block) {
      check_score(row, head, row.request->first_block() + block, float_at(expected, at, h, block),
                  float_at(given, row.row, head, block), Place{name, row, head, block}, found);
    }
  }
}

SelectionComparison::Listed SelectionComparison::read_list(const Tensor& ids, const Tensor& scores,
                                                           std::int64_t row, std::int64_t head) {
  Listed list;
  for (std::int64_t s = 0; s < ids.shape[2]; ++s) {
    const std::int32_t id = int_at(ids, row, head, s);
    if (id == -1) break;
    list.ids.push_back(id);
    if (scores) list.scores.push_back(float_at(scores, row, head, s));
  }
  return list;
}

/// Ascending valid prefix, -1 (and -inf) behind it.
bool SelectionComparison::check_form(const CallRow& row, std::int64_t head, const Listed& list,
                                     Findings& found) const {
  const auto length = static_cast<std::int64_t>(list.ids.size());
  for (std::int64_t s = 0; s < o_.block_ids.shape[2]; ++s) {
    const std::int32_t id = int_at(o_.block_ids, row.row, head, s);
    const bool good = s >= length ? id == -1 : id >= 0 && (s == 0 || id > list.ids[s - 1]);
    if (!good) {
      found.fail(Place{"block_ids", row, head, s}() + ": expected " +
                 (s >= length ? "-1 behind the first -1" : "ascending ids") + ", got " +
                 std::to_string(id));
      return false;
    }
    if (s >= length && o_.chosen_scores) {
      const float score = float_at(o_.chosen_scores, row.row, head, s);
      if (score != -kInfinity)
        found.fail(Place{"chosen_scores", row, head, s}() + both(-kInfinity, score, 0));
    }
  }
  return true;
}

void SelectionComparison::selection_row(const CallRow& row, std::int64_t head, const Operands& e,
                                        std::int64_t at, std::int64_t h, Findings& found) const {
  const Listed given = read_list(o_.block_ids, o_.chosen_scores, row.row, head);
  const Listed expected = read_list(e.block_ids, e.chosen_scores, at, h);
  if (!check_form(row, head, given, found)) return;
  if (p_.selection.precision == Precision::Fast)
    return check_codes(row, head, given, expected, found);
  if (given.ids != expected.ids) check_swaps(row, head, given, expected, found);
  if (!o_.chosen_scores) return;
  for (std::size_t s = 0; s < given.ids.size(); ++s) {
    const auto twin = std::find(expected.ids.begin(), expected.ids.end(), given.ids[s]);
    const Place where{"chosen_scores", row, head, static_cast<std::int64_t>(s)};
    if (twin == expected.ids.end()) {
      if (!o_.index_q) continue;  // scores were given: the lists have failed already
      const double score = bound(row, head, given.ids[s]).score;
      check_score(row, head, given.ids[s], score, given.scores[s], where, found);
      continue;
    }
    const float score = expected.scores[static_cast<std::size_t>(twin - expected.ids.begin())];
    if (o_.index_q) {
      check_score(row, head, given.ids[s], score, given.scores[s], where, found);
    } else if (!(score == given.scores[s])) {
      found.fail(where() + both(score, given.scores[s], 0));
    }
  }
}

/// Products of codes are exact, and what becomes of them is written down: so are scores.
void SelectionComparison::check_codes(const CallRow& row, std::int64_t head, const Listed& given,
                                      const Listed& expected, Findings& found) const {
  if (given.ids != expected.ids) {
    found.fail(Place{"block_ids", row, head}() + ": expected " + list_text(expected.ids) +
               ", got " + list_text(given.ids));
    return;
  }
  for (std::size_t s = 0; s < given.scores.size(); ++s) {
    if (given.scores[s] == expected.scores[s]) continue;
    const Place where{"chosen_scores", row, head, static_cast<std::int64_t>(s)};
    found.fail(where() + both(expected.scores[s], given.scores[s], 0));
  }
}

/// Two lists differ: legal only where the swapped ids' scores lie within the rounding error of
/// the k-th score.
void SelectionComparison::check_swaps(const CallRow& row, std::int64_t head, const Listed& given,
                                      const Listed& expected, Findings& found) const {
  const std::string where = Place{"block_ids", row, head}();
  const std::string lists =
      ": expected " + list_text(expected.ids) + ", got " + list_text(given.ids);
  const bool inexact = o_.index_q && !exact_scores_;
  if (!inexact || given.ids.size() != expected.ids.size()) return found.fail(where + lists);
  double last = kInfinity;
  for (const float score : expected.scores) last = std::min<double>(last, score);
  double last_error = 0;
  for (std::size_t s = 0; s < expected.ids.size(); ++s) {
    if (expected.scores[s] == last) last_error = bound(row, head, expected.ids[s]).error;
  }
  const auto is_near = [&](std::int32_t id, double score) {
    const double tolerance = last_error + bound(row, head, id).error + 2 * ulp(last, DType::F32);
    return std::fabs(score - last) <= tolerance;
  };
  for (const std::int32_t id : given.ids) {
    if (std::count(expected.ids.begin(), expected.ids.end(), id) != 0) continue;
    const bool visible = row.request->block_keys(row.i, id).second > 0;
    if (!visible || !is_near(id, bound(row, head, id).score)) {
      return found.fail(where + lists + "; " + std::to_string(id) + " does not belong");
    }
  }
  for (std::size_t s = 0; s < expected.ids.size(); ++s) {
    const std::int32_t id = expected.ids[s];
    if (std::count(given.ids.begin(), given.ids.end(), id) != 0) continue;
    if (!is_near(id, expected.scores[s])) {
      return found.fail(where + lists + "; " + std::to_string(id) + " is missing");
    }
  }
}

}  // namespace msa::testkit
