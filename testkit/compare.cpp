// SPDX-License-Identifier: MIT
// Comparison with the oracle: positions of non-finite numbers first, then values, with the worst
// place.
#include "testkit/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <sstream>

#include "testkit/number.h"
#include "testkit/oracle.h"
#include "testkit/plain.h"
#include "testkit/random.h"
#include "testkit/requests.h"

namespace msa::testkit {

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr std::uint64_t kSampleStream = 400;

/// What one thread has found; merged in row order, so that reports do not depend on threads.
struct Findings {
  std::string failure{};
  double worst_error = 0;
  double worst_share = 0;
  std::string worst_place{};

  void fail(const std::string& text) {
    if (failure.empty()) failure = text;
  }
  /// `where` makes the text: only the worst place and the first failure need one.
  template <class Where>
  void note(double error, double tolerance, const Where& where) {
    const double share = tolerance > 0 ? error / tolerance : (error > 0 ? kInf : 0.0);
    if (share <= worst_share) return;
    worst_share = share;
    worst_place = where();
  }
  void add(const Findings& other) {
    fail(other.failure);
    worst_error = std::max(worst_error, other.worst_error);
    if (other.worst_share > worst_share) {
      worst_share = other.worst_share;
      worst_place = other.worst_place;
    }
  }
};

/// A row of the call as every comparison sees it.
struct Row {
  const Request* request = nullptr;  // none: padding
  std::int64_t i = 0;
  std::int64_t row = 0;
};

/// Where an element stands; the text is made only when called.
struct Place {
  const char* what;
  const Row& row;
  std::int64_t head;
  std::int64_t x = -1;

  std::string operator()() const {
    std::ostringstream text;
    text << what << "[" << row.row << ", " << head;
    if (x >= 0) text << ", " << x;
    text << "]";
    if (row.request != nullptr) {
      text << " (request " << row.request->index << ", query " << row.i << ", "
           << row.request->visible_keys(row.i) << " visible keys)";
    }
    return text.str();
  }
};

std::string both(double expected, double given, double tolerance) {
  std::ostringstream text;
  text.precision(9);
  text << ": expected " << expected << ", got " << given << ", error "
       << std::fabs(given - expected) << ", tolerance " << tolerance;
  return text.str();
}

enum class Kind { Finite, MinusInf, Other };
Kind kind_of(double x) {
  if (std::isfinite(x)) return Kind::Finite;
  return x == -kInf ? Kind::MinusInf : Kind::Other;
}

/// Equal, both without a value, or within the tolerance.
template <class Where>
void check_number(Findings& found, double expected, double given, double tolerance,
                  const Where& where) {
  if (kind_of(expected) != kind_of(given)) {
    found.fail(where() + both(expected, given, tolerance));
    return;
  }
  if (!std::isfinite(expected)) return;
  const double error = std::fabs(given - expected);
  found.note(error, tolerance, where);
  if (error > tolerance) found.fail(where() + both(expected, given, tolerance));
}

// ---- one row of one operation ----

/// Compares one stage: an operation with its operands and the oracle's answer to it or to a row of
/// it.
class Stage {
 public:
  Stage(const Problem& problem, const Operands& operands, const CompareOptions& options)
      : p_(problem), o_(operands), options_(options) {}

  void row(const Row& row, const Answer& answer, Findings& found) const {
    const std::int64_t first = answer.part().kv_head_begin;
    const Operands& e = answer.operands();
    const std::int64_t at = row.row - answer.part().row_begin;
    if (o_.out && p_.op != Op::MergeStates) {
      const std::int64_t group = p_.attention.heads_q / p_.attention.heads_kv;
      for (std::int64_t h = 0; h < e.out.shape[1] / group; ++h) {
        attention_row(row, first + h, narrow(e.out, 0, at, 1),
                      e.lse ? narrow(e.lse, 0, at, 1) : e.lse, first, found);
      }
    }
    if (o_.out && p_.op == Op::MergeStates) merge_row(row, e, at, found);
    if (o_.block_max) score_row(row, "block_max", o_.block_max, e.block_max, at, first, found);
    if (o_.scores) score_row(row, "scores", o_.scores, e.scores, at, first, found);
    if (o_.block_ids) {
      for (std::int64_t h = 0; h < e.block_ids.shape[1]; ++h) {
        selection_row(row, first + h, e, at, h, found);
      }
    }
  }

  /// A row behind the last request: nothing is visible.
  void padding_row(const Row& row, Findings& found) const {
    for (const auto& [name, tensor, value] :
         {std::tuple{"out", o_.out, 0.0}, std::tuple{"lse", o_.lse, -kInf},
          std::tuple{"block_max", o_.block_max, -kInf}, std::tuple{"scores", o_.scores, -kInf},
          std::tuple{"chosen_scores", o_.chosen_scores, -kInf}}) {
      if (!tensor) continue;
      const std::int64_t inner = tensor.rank > 2 ? tensor.shape[2] : 1;
      for (std::int64_t h = 0; h < tensor.shape[1]; ++h) {
        for (std::int64_t x = 0; x < inner; ++x) {
          check_number(found, value, float_at(tensor, row.row, h, x), 0, Place{name, row, h, x});
        }
      }
    }
    if (!o_.block_ids) return;
    for (std::int64_t h = 0; h < o_.block_ids.shape[1]; ++h) {
      for (std::int64_t s = 0; s < o_.block_ids.shape[2]; ++s) {
        const std::int32_t id = int_at(o_.block_ids, row.row, h, s);
        if (id != -1)
          found.fail(Place{"block_ids", row, h, s}() + ": expected -1, got " + std::to_string(id));
      }
    }
  }

  /// Integer outputs as a whole: invert_selection.
  void inversion(const Answer& answer, Findings& found) const {
    const Operands& e = answer.operands();
    for (const auto& [name, given, expected] : {std::tuple{"row_ptr", o_.row_ptr, e.row_ptr},
                                                std::tuple{"q_indices", o_.q_indices, e.q_indices},
                                                std::tuple{"q_slots", o_.q_slots, e.q_slots}}) {
      for (std::int64_t h = 0; h < given.shape[0]; ++h) {
        for (std::int64_t n = 0; n < given.shape[1]; ++n) {
          const std::int32_t a = int_at(expected, h, n), b = int_at(given, h, n);
          if (a == b) continue;
          found.fail(std::string(name) + "[" + std::to_string(h) + ", " + std::to_string(n) +
                     "]: expected " + std::to_string(a) + ", got " + std::to_string(b));
        }
      }
    }
  }

 private:
  KeyList keys_of(const Row& row, std::int64_t kv_head) const {
    const Request& r = *row.request;
    KeyList keys;
    if (p_.op == Op::DenseAttention) {
      keys.resize(static_cast<std::size_t>(r.visible_keys(row.i)));
      for (std::size_t n = 0; n < keys.size(); ++n) keys[n] = static_cast<std::int64_t>(n);
      return keys;
    }
    for (std::int64_t s = 0; s < o_.block_ids_in.shape[2]; ++s) {
      const std::int32_t id = int_at(o_.block_ids_in, row.row, kv_head, s);
      if (id == -1) break;
      const auto [begin, end] = r.block_keys(row.i, id);
      for (std::int64_t key = begin; key < end; ++key) keys.push_back(key);
    }
    std::sort(keys.begin(), keys.end());
    return keys;
  }

  double lse_tolerance(double expected) const { return 1e-5 * std::max(1.0, std::fabs(expected)); }

  /// Every query head of one KV head. `out` and `lse` are the oracle's, [1, heads, ...], from KV
  /// head `first` on.
  void attention_row(const Row& row, std::int64_t kv_head, const Tensor& out, const Tensor& lse,
                     std::int64_t first, Findings& found) const {
    const std::int64_t group = p_.attention.heads_q / p_.attention.heads_kv;
    const PlainResult plain =
        plain_attention(p_, o_, *row.request, row.row, kv_head, keys_of(row, kv_head));
    for (std::int64_t g = 0; g < group; ++g) {
      const std::int64_t h = kv_head * group + g;
      const std::int64_t at = (kv_head - first) * group + g;
      const float* expected = reinterpret_cast<const float*>(address(out, 0, at));
      const auto plain_of = [&](int variant) {
        return &plain.out[(variant * group + g) * p_.attention.value_dim];
      };
      double plain_error = 0;
      for (int variant = 0; variant < plain.variants; ++variant) {
        plain_error = std::max(plain_error, distance(expected, plain_of(variant)));
      }
      if (plain_error > plain.error_bound * plain.largest_v) {
        found.fail(Place{"out", row, h}() + ": the oracle and the plain computation disagree by " +
                   std::to_string(plain_error));
      }
      output_row(row, h, expected, std::max(plain_error, plain.error_floor[g]), found);
      if (!o_.lse) continue;
      const double e = float_at(lse, 0, at);
      check_number(found, e, float_at(o_.lse, row.row, h), lse_tolerance(e), Place{"lse", row, h});
    }
  }

  /// What writing a number this large may cost: half an ulp where 16-bit outputs are rounded to
  /// nearest, with room for the oracle's own rounding to f32.
  double rounding(double largest) const {
    const DType dtype = o_.out.dtype;
    return (dtype == DType::F32 ? 1.0 : 0.502) * ulp(largest, dtype);
  }

  /// Largest distance where both are finite.
  double distance(const float* a, const float* b) const {
    double largest = 0;
    for (std::int64_t d = 0; d < p_.attention.value_dim; ++d) {
      if (std::isfinite(a[d]) && std::isfinite(b[d])) {
        largest = std::max(largest, std::fabs(static_cast<double>(a[d]) - b[d]));
      }
    }
    return largest;
  }

  /// `out` of one row and head against the oracle's: finite or not first, then values.
  void output_row(const Row& row, std::int64_t head, const float* expected, double plain_error,
                  Findings& found) const {
    const std::int64_t dim = p_.attention.value_dim;
    std::vector<float> given(static_cast<std::size_t>(dim));
    load(address(o_.out, row.row, head), o_.out.dtype, dim, given.data());
    double largest = 0;
    for (std::int64_t d = 0; d < dim; ++d) {
      const bool finite = std::isfinite(round_to(expected[d], o_.out.dtype));
      if (finite != std::isfinite(given[d])) {
        found.fail(Place{"out", row, head, d}() + ": expected " + std::to_string(expected[d]) +
                   ", got " + std::to_string(given[d]));
        return;
      }
      if (finite) largest = std::max(largest, std::fabs(static_cast<double>(expected[d])));
    }
    const double tolerance = 2 * plain_error + rounding(largest);
    for (std::int64_t d = 0; d < dim; ++d) {
      if (!std::isfinite(given[d])) continue;
      const double error = std::fabs(static_cast<double>(given[d]) - expected[d]);
      found.worst_error = std::max(found.worst_error, error);
      if (error <= tolerance * found.worst_share) continue;
      const Place where{"out", row, head, d};
      found.note(error, tolerance, where);
      if (error > tolerance) {
        found.fail(where() + both(expected[d], given[d], tolerance));
        return;
      }
    }
  }

  void merge_row(const Row& row, const Operands& e, std::int64_t at, Findings& found) const {
    for (std::int64_t h = 0; h < p_.attention.heads_q; ++h) {
      const float* expected = reinterpret_cast<const float*>(address(e.out, at, h));
      const PlainMerge plain = plain_merge(o_, row.row, h);
      const double error = std::max(distance(expected, plain.out.data()), plain.error_floor);
      output_row(row, h, expected, error, found);
      if (!o_.lse) continue;
      const double lse = float_at(e.lse, at, h);
      const double tolerance = 1e-5 * std::max(1.0, std::fabs(lse));
      check_number(found, lse, float_at(o_.lse, row.row, h), tolerance, Place{"lse", row, h});
    }
  }

  // ---- scores and selections

  const Tensor& score_queries() const { return p_.op == Op::DenseAttention ? o_.q : o_.index_q; }
  const Tensor& score_keys() const { return p_.op == Op::DenseAttention ? o_.k : o_.index_k; }
  std::int64_t key_head(std::int64_t head) const {
    if (p_.op == Op::DenseAttention) return head / (p_.attention.heads_q / p_.attention.heads_kv);
    return head * p_.index.heads_k / p_.index.heads;
  }
  ScoreBound bound(const Row& row, std::int64_t head, std::int64_t id) const {
    return score_of_block(score_queries(), row.row, head, score_keys(), key_head(head), o_.batch,
                          *row.request, row.i, id);
  }

  /// A score against the oracle's; the tolerance is worked out only where the two differ visibly.
  void check_score(const Row& row, std::int64_t head, std::int64_t id, double expected,
                   double given, const Place& where, Findings& found) const {
    if (expected == given) return;
    if (kind_of(expected) != Kind::Finite || kind_of(given) != Kind::Finite ||
        options_.exact_scores) {
      if (expected != given) found.fail(where() + both(expected, given, 0));
      return;
    }
    const double tolerance = bound(row, head, id).error + ulp(expected, DType::F32);
    check_number(found, expected, given, tolerance, where);
  }

  void score_row(const Row& row, const char* name, const Tensor& given, const Tensor& expected,
                 std::int64_t at, std::int64_t first, Findings& found) const {
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

  struct Listed {
    std::vector<std::int32_t> ids{};
    std::vector<float> scores{};  // empty where nobody asked for them
  };

  static Listed read_list(const Tensor& ids, const Tensor& scores, std::int64_t row,
                          std::int64_t head) {
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
  bool check_form(const Row& row, std::int64_t head, const Listed& list, Findings& found) const {
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
        if (score != -kInf)
          found.fail(Place{"chosen_scores", row, head, s}() + both(-kInf, score, 0));
      }
    }
    return true;
  }

  void selection_row(const Row& row, std::int64_t head, const Operands& e, std::int64_t at,
                     std::int64_t h, Findings& found) const {
    const Listed given = read_list(o_.block_ids, o_.chosen_scores, row.row, head);
    const Listed expected = read_list(e.block_ids, e.chosen_scores, at, h);
    if (!check_form(row, head, given, found)) return;
    if (given.ids != expected.ids) check_swaps(row, head, given, expected, found);
    if (!o_.chosen_scores) return;
    for (std::size_t s = 0; s < given.ids.size(); ++s) {
      const auto twin = std::find(expected.ids.begin(), expected.ids.end(), given.ids[s]);
      const Place where{"chosen_scores", row, head, static_cast<std::int64_t>(s)};
      if (twin == expected.ids.end()) {
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

  /// Two lists differ: legal only where the swapped ids' scores lie within the rounding error of
  /// the k-th score.
  void check_swaps(const Row& row, std::int64_t head, const Listed& given, const Listed& expected,
                   Findings& found) const {
    const std::string where = Place{"block_ids", row, head}();
    const std::string lists =
        ": expected " + list_text(expected.ids) + ", got " + list_text(given.ids);
    const bool inexact = o_.index_q && !options_.exact_scores;
    if (!inexact || given.ids.size() != expected.ids.size()) return found.fail(where + lists);
    double last = kInf;
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

  static std::string list_text(const std::vector<std::int32_t>& ids) {
    std::string text = "{";
    for (const std::int32_t id : ids) {
      if (text.size() > 1) text.append(" ");
      text.append(std::to_string(id));
    }
    return text.append("}");
  }

  const Problem& p_;
  const Operands& o_;
  const CompareOptions& options_;
};

// ---- all rows, or a sample ----

std::vector<Row> all_rows(const std::vector<Request>& requests, std::int64_t rows) {
  std::vector<Row> all(static_cast<std::size_t>(rows));
  for (std::int64_t row = 0; row < rows; ++row) all[row].row = row;
  for (const Request& r : requests) {
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
      all[r.q_begin + i].request = &r;
      all[r.q_begin + i].i = i;
    }
  }
  return all;
}

/// The last row, the first, and others at random: late rows see most.
std::vector<Row> sample(const std::vector<Row>& rows, const CompareOptions& options) {
  std::vector<Row> chosen{rows.front(), rows.back()};
  const Stream64 random(options.seed, kSampleStream);
  const auto count = static_cast<std::int64_t>(rows.size());
  for (std::int64_t n = 2; n < options.sample_rows; ++n) {
    chosen.push_back(rows[random.below(static_cast<std::uint64_t>(n), count)]);
  }
  return chosen;
}

std::int64_t num_rows(const Operands& o) {
  if (!o.part_outs.empty()) return o.part_outs[0].shape[0];
  if (!o.part_ids.empty()) return o.part_ids[0].shape[0];
  for (const Tensor* t : {&o.q, &o.index_q, &o.scores_in, &o.block_ids_in}) {
    if (*t) return t->shape[0];
  }
  return 0;
}

double row_work(const Problem& p, const Request& r, std::int64_t i) {
  const auto visible = static_cast<double>(r.visible_keys(i));
  const double listed =
      std::min(visible, static_cast<double>(p.selection.topk * p.selection.block_size));
  const double index = visible * static_cast<double>(p.index.heads * p.index.dim);
  const auto attend =
      static_cast<double>(p.attention.heads_q * (p.attention.head_dim + p.attention.value_dim));
  switch (p.op) {
    case Op::DenseAttention:
      return visible * attend;
    case Op::SparseAttention:
      return listed * attend;
    case Op::MsaAttention:
      return index + listed * attend;
    case Op::BlockScores:
    case Op::SelectBlocks:
      return index;
    default:
      return 0;
  }
}

class Comparison {
 public:
  Comparison(const Problem& problem, const Operands& operands, const CompareOptions& options)
      : p_(problem), o_(operands), options_(options) {
    if (o_.batch.cu_seqlens_q) requests_ = requests_of(p_, o_.batch);
    rows_ = all_rows(requests_, num_rows(o_));
    report_.rows = static_cast<std::int64_t>(rows_.size());
  }

  std::vector<std::int64_t> rows_read() const {
    std::vector<Op> stages{p_.op};
    if (p_.op == Op::MsaAttention) stages = {Op::SelectBlocks, Op::SparseAttention};
    const bool all = std::any_of(stages.begin(), stages.end(), [&](Op op) {
      Problem stage = p_;
      stage.op = op;
      return takes_whole(work_of(stage, o_));
    });
    std::vector<std::int64_t> rows;
    for (const Row& row : all || rows_.empty() ? rows_ : sample(rows_, options_))
      rows.push_back(row.row);
    std::sort(rows.begin(), rows.end());
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    return rows;
  }

  Report run() {
    if (p_.op == Op::MsaAttention) {
      run_msa();
    } else {
      run_stage(p_, o_);
    }
    report_.ok = found_.failure.empty();
    report_.what = found_.failure;
    report_.worst_error = found_.worst_error;
    report_.worst_share = found_.worst_share;
    report_.worst_place = found_.worst_place;
    return report_;
  }

 private:
  /// The selection first, then attention over the very blocks that were selected.
  void run_msa() {
    Problem select = p_;
    select.op = Op::SelectBlocks;
    select.outputs.lse = false;
    Problem attend = p_;
    attend.op = Op::SparseAttention;
    Operands ids = o_, state = o_;
    ids.q = ids.k = ids.v = ids.out = ids.lse = {};
    state.index_q = state.index_k = state.block_ids = {};
    state.block_ids_in = o_.block_ids;
    std::optional<Answer> selected;
    std::vector<std::int32_t> own;
    if (o_.block_ids) {
      run_stage(select, ids);
      if (!found_.failure.empty()) return;
    } else {
      own.resize(
          static_cast<std::size_t>(rows_.size() * p_.attention.heads_kv * p_.selection.topk));
      ids.block_ids = make_tensor(own.data(), DType::I32,
                                  {report_.rows, p_.attention.heads_kv, p_.selection.topk});
      selected.emplace(select, ids);
      state.block_ids_in = selected->operands().block_ids;
    }
    run_stage(attend, state);
  }

  bool takes_whole(double work) const { return work <= options_.max_work || requests_.empty(); }

  void run_stage(const Problem& problem, const Operands& operands) {
    const Stage stage(problem, operands, options_);
    if (rows_.empty() && problem.op != Op::InvertSelection) return;
    const double work = work_of(problem, operands);
    if (takes_whole(work)) {
      whole(problem, operands, stage);
    } else {
      sampled(problem, operands, stage, work);
    }
  }

  void whole(const Problem& problem, const Operands& operands, const Stage& stage) {
    const Answer answer(problem, operands);
    if (problem.op == Op::InvertSelection) {
      stage.inversion(answer, found_);
      report_.rows_compared = report_.rows;
      return;
    }
    const bool merge = problem.op == Op::MergeStates || problem.op == Op::MergeSelections;
    std::vector<Findings> found(rows_.size());
#pragma omp parallel for schedule(dynamic, 4) if (rows_.size() > 16)
    for (std::size_t n = 0; n < rows_.size(); ++n) {
      if (rows_[n].request != nullptr || merge) {
        stage.row(rows_[n], answer, found[n]);
      } else {
        stage.padding_row(rows_[n], found[n]);
      }
    }
    for (const Findings& f : found) found_.add(f);
    report_.rows_compared = report_.rows;
  }

  /// Single rows; where even one is much work, one KV head of it, another for each sample.
  void sampled(const Problem& problem, const Operands& operands, const Stage& stage, double work) {
    const std::vector<Row> rows = sample(rows_, options_);
    const bool attends = static_cast<bool>(operands.q);
    const std::int64_t heads = attends ? problem.attention.heads_kv : problem.index.heads;
    const double of_row = work / static_cast<double>(rows_.size());
    const bool split = of_row * static_cast<double>(rows.size()) > options_.max_work && heads > 1;
    std::vector<Findings> found(rows.size());
#pragma omp parallel for schedule(dynamic, 1)
    for (std::size_t n = 0; n < rows.size(); ++n) {
      if (rows[n].request == nullptr) {
        stage.padding_row(rows[n], found[n]);
        continue;
      }
      Part part{.kv_heads = heads};
      if (split) part = {.kv_head_begin = static_cast<std::int64_t>(n) % heads, .kv_heads = 1};
      sampled_row(problem, operands, stage, rows[n], part, found[n]);
    }
    for (const Findings& f : found) found_.add(f);
    report_.rows_compared = static_cast<std::int64_t>(rows.size());
  }

  /// Inside a parallel region: no exception leaves.
  static void sampled_row(const Problem& problem, const Operands& operands, const Stage& stage,
                          const Row& row, const Part& part, Findings& found) {
    try {
      const Answer answer(problem, operands, *row.request, row.i, part);
      stage.row(row, answer, found);
    } catch (const std::exception& error) {
      found.fail(std::string("the oracle failed: ") + error.what());
    }
  }

  const Problem& p_;
  const Operands& o_;
  const CompareOptions& options_;
  std::vector<Request> requests_{};
  std::vector<Row> rows_{};
  Findings found_{};
  Report report_{};
};

}  // namespace

double work_of(const Problem& problem, const Operands& operands) {
  if (!operands.batch.cu_seqlens_q) return 0;
  double work = 0;
  for (const Request& r : requests_of(problem, operands.batch)) {
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) work += row_work(problem, r, i);
  }
  return work;
}

std::vector<std::int64_t> rows_to_compare(const Problem& problem, const Operands& operands,
                                          const CompareOptions& options) {
  return Comparison(problem, operands, options).rows_read();
}

Report compare(const Problem& problem, const Operands& operands, const CompareOptions& options) {
  try {
    return Comparison(problem, operands, options).run();
  } catch (const Error& error) {
    Report report;
    report.ok = false;
    report.what = std::string("the oracle failed: ") + error.what();
    return report;
  }
}

}  // namespace msa::testkit
