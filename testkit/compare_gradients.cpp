// SPDX-License-Identifier: MIT
// The plain computation of gradients, and what it says of others.
#include "testkit/compare_gradients.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "testkit/number.h"

namespace msa::testkit {

namespace {

constexpr double kRounding = 0x1p-24;
// Of a weight: what lies below the smallest normal number may come out as nothing.
constexpr double kUnderflow = 0x1p-126;
// Bounds below are of sums whose roundings fall in random order, all on one side.
constexpr double kRoom = 2;
// A tile of dq has 64 keys, or twice as many.
constexpr std::int64_t kTileKeys = 64;

std::vector<float> floats_of_row(const Tensor& t, std::int64_t row, std::int64_t head) {
  std::vector<float> values(static_cast<std::size_t>(t.shape[2]));
  load(address(t, row, head), t.dtype, t.shape[2], values.data());
  return values;
}

/// A product and the sum of its terms' magnitudes.
struct Product {
  double sum = 0, size = 0;
};

Product product(const std::vector<float>& a, const std::vector<float>& b) {
  Product p;
  for (std::size_t d = 0; d < a.size(); ++d) {
    const double term = static_cast<double>(a[d]) * b[d];
    p.sum += term;
    p.size += std::fabs(term);
  }
  return p;
}

/// fp32 roundings of a sum of `count` terms.
double sum_roundings(std::size_t count) { return (8 + std::sqrt(double(count))) * kRounding; }

/// Rounded to the type: what fp32 arithmetic has off by `error` may round another way than the
/// exact number does, near a tie.
struct Rounded {
  double value;
  double error;
};

Rounded rounded(double exact, double error, DType dtype) {
  const auto round = [dtype](double x) -> double { return round_to(static_cast<float>(x), dtype); };
  const double either_way = round(exact + error) - round(exact - error);
  // As large as it may be: it needs no room.
  return {round(exact), error + (std::isfinite(either_way) ? either_way / kRoom : 0.0)};
}

/// What neighbouring keys have in common: their mean in columns where it is larger than what they
/// differ by, 0 elsewhere.
class CommonOfKeys {
 public:
  void add(const std::vector<float>& key) {
    sums_.resize(key.size());
    squares_.resize(key.size());
    for (std::size_t d = 0; d < key.size(); ++d) {
      sums_[d] += key[d];
      squares_[d] += double{key[d]} * key[d];
    }
    ++count_;
  }

  double in(std::size_t d) const {
    const double mean = sums_[d] / static_cast<double>(count_);
    return 2 * mean * sums_[d] > squares_[d] ? mean : 0.0;
  }

 private:
  std::vector<double> sums_{}, squares_{};
  std::int64_t count_ = 0;
};

/// Gradients of all rows and heads of one tensor: plain sums, and bounds of their fp32 roundings.
class Sums {
 public:
  explicit Sums(const Tensor& gradient) : t_(gradient) {
    if (!gradient) return;
    const auto size = static_cast<std::size_t>(t_.shape[0] * t_.shape[1] * t_.shape[2]);
    plain_.assign(size, 0.0);
    bound_.assign(size, 0.0);
    back_below_.assign(size, 0.0);
    back_above_.assign(size, 0.0);
    terms_.assign(static_cast<std::size_t>(t_.shape[0] * t_.shape[1]), 0);
  }

  /// Adds `weight` times `vector`.
  void add(std::int64_t row, std::int64_t head, const Rounded& weight,
           const std::vector<float>& vector) {
    if (!t_) return;
    const std::int64_t place = row * t_.shape[1] + head;
    ++terms_[static_cast<std::size_t>(place)];
    const double own = std::fabs(weight.value);
    for (std::size_t d = 0; d < vector.size(); ++d) {
      const auto at = static_cast<std::size_t>(place * t_.shape[2]) + d;
      plain_[at] += weight.value * vector[d];
      bound_[at] += (weight.error + sum_roundings(16) * own) * std::fabs(double(vector[d]));
    }
  }

  /// What rounding took from the weights of a tile of keys: programs may give it back times what
  /// the keys have in common, in some tiles and not in others.
  void may_give_back(std::int64_t row, std::int64_t head, double taken, const CommonOfKeys& keys) {
    if (!t_) return;
    for (std::int64_t d = 0; d < t_.shape[2]; ++d) {
      const auto at = static_cast<std::size_t>((row * t_.shape[1] + head) * t_.shape[2] + d);
      const double back = taken * keys.in(static_cast<std::size_t>(d));
      if (back < 0) back_below_[at] += back;
      if (back > 0) back_above_[at] += back;
    }
  }

  /// The sum of squares of the plain sums' errors against the oracle's `expected`, which has
  /// `factor` in it.
  double error_squares(const Tensor& expected, double factor) const {
    double squares = 0;
    if (!t_) return squares;
    std::size_t at = 0;
    for (std::int64_t row = 0; row < t_.shape[0]; ++row) {
      for (std::int64_t head = 0; head < t_.shape[1]; ++head) {
        for (std::int64_t d = 0; d < t_.shape[2]; ++d) {
          const double apart = factor * plain_[at++] - float_at(expected, row, head, d);
          if (std::isfinite(apart)) squares += apart * apart;
        }
      }
    }
    return squares;
  }

  /// Marks against the oracle's `expected`, which has `factor` and what was there before in it.
  std::vector<double> marks(const Tensor& expected, double factor, bool accumulate) const {
    std::vector<double> marks;
    if (!t_) return marks;
    for (std::int64_t row = 0; row < t_.shape[0]; ++row) {
      for (std::int64_t head = 0; head < t_.shape[1]; ++head) {
        const std::int64_t place = row * t_.shape[1] + head;
        const double more = std::sqrt(double(terms_[static_cast<std::size_t>(place)])) / 8 + 1;
        double error = 0, bound = 0, largest = 0;
        for (std::int64_t d = 0; d < t_.shape[2]; ++d) {
          const auto at = static_cast<std::size_t>(place * t_.shape[2] + d);
          const double truth = float_at(expected, row, head, d);
          const double before = accumulate ? double((row * 7 + head * 3 + d) % 33 - 16) / 8 : 0.0;
          for (const double back : {0.0, back_below_[at], back_above_[at]}) {
            const double apart = std::fabs(factor * (plain_[at] + back) + before - truth);
            if (std::isfinite(apart)) error = std::max(error, apart);
          }
          if (std::isfinite(bound_[at]))
            bound = std::max(bound, std::fabs(factor) * bound_[at] * more);
          if (std::isfinite(truth)) largest = std::max(largest, std::fabs(truth));
        }
        const bool nothing = terms_[static_cast<std::size_t>(place)] == 0;
        marks.push_back(nothing ? 0 : 2 * error + kRoom * bound + ulp(largest, t_.dtype));
      }
    }
    return marks;
  }

 private:
  const Tensor& t_;
  std::vector<double> plain_{}, bound_{};
  std::vector<double> back_below_{}, back_above_{};  // the least and the most that is given back
  std::vector<std::int64_t> terms_{};
};

class PlainBackward {
 public:
  PlainBackward(const Problem& problem, const Operands& operands)
      : p_(problem),
        o_(operands),
        scale_(problem.attention.softmax_scale.value_or(
            static_cast<float>(1.0 / std::sqrt(double(problem.attention.head_dim))))),
        dq_(operands.dq),
        dk_(operands.dk),
        dv_(operands.dv) {}

  GradientMarks run(const Answer& answer) {
    const std::int64_t group = p_.attention.heads_q / p_.attention.heads_kv;
    for (const Request& r : requests_of(p_, o_.batch)) {
      for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
        for (std::int64_t h = 0; h < p_.attention.heads_q; ++h) row(r, i, h, h / group);
      }
    }
    const Operands& e = answer.operands();
    const bool more = p_.gradients.accumulate;
    GradientMarks marks;
    marks.dq = dq_.marks(e.dq, scale_, false);
    marks.dk = dk_.marks(e.dk, scale_, more);
    marks.dv = dv_.marks(e.dv, 1.0, more);
    marks.plain_dq = dq_.error_squares(e.dq, scale_);
    return marks;
  }

 private:
  void row(const Request& r, std::int64_t i, std::int64_t h, std::int64_t head) {
    const std::int64_t at = r.q_begin + i;
    const double lse = float_at(o_.lse_in, at, h);
    if (lse == -double(kInf)) return;
    const std::vector<float> q = floats_of_row(o_.q, at, h), dout = floats_of_row(o_.dout, at, h);
    const Product delta = product(dout, floats_of_row(o_.out_in, at, h));
    const double dlse = o_.dlse ? float_at(o_.dlse, at, h) : 0.0;
    if (!o_.block_ids_in)
      return keys(r, at, h, head, {0, r.visible_keys(i)}, q, dout, lse, delta, dlse);
    for (std::int64_t s = 0; s < o_.block_ids_in.shape[2]; ++s) {
      const std::int32_t id = int_at(o_.block_ids_in, at, head, s);
      if (id == -1) break;
      keys(r, at, h, head, r.block_keys(i, id), q, dout, lse, delta, dlse);
    }
  }

  void keys(const Request& r, std::int64_t at, std::int64_t h, std::int64_t head,
            std::pair<std::int64_t, std::int64_t> range, const std::vector<float>& q,
            const std::vector<float>& dout, double lse, const Product& delta, double dlse) {
    const DType storage = p_.attention.q.storage;
    CommonOfKeys tile;
    double taken = 0;  // from its weights of dq
    for (std::int64_t key = range.first; key < range.second; ++key) {
      const std::vector<float> k = floats_of_row(o_.k, r.k_begin + key, head),
                               v = floats_of_row(o_.v, r.k_begin + key, head);
      const Product s = product(q, k), dp = product(dout, v);
      const double weight = std::exp(scale_ * s.sum - lse);
      const double gradient = dp.sum - delta.sum + dlse;
      double weight_error = 0, error = 0;  // a score of minus infinity weighs exactly nothing
      if (weight != 0) {
        weight_error = weight * (std::fabs(scale_) * s.size * sum_roundings(q.size()) +
                                 4 * kRounding * (std::fabs(lse) + std::fabs(scale_ * s.sum) + 2)) +
                       kUnderflow;
        error = weight_error * std::fabs(gradient) +
                weight * sum_roundings(dout.size()) * (dp.size + delta.size + std::fabs(dlse));
      }
      const Rounded p = rounded(weight, weight_error, storage);
      const Rounded ds = rounded(weight * gradient, error, storage);
      dq_.add(at, h, ds, k);
      dk_.add(r.k_begin + key, head, ds, q);
      dv_.add(r.k_begin + key, head, p, dout);
      tile.add(k);
      taken += weight * gradient - ds.value;
      if ((key + 1) % kTileKeys != 0 && key + 1 != range.second) continue;
      dq_.may_give_back(at, h, std::exchange(taken, 0.0), std::exchange(tile, {}));
    }
  }

  const Problem& p_;
  const Operands& o_;
  double scale_;
  Sums dq_, dk_, dv_;
};

/// The loss of the index branch.
class PlainLoss {
 public:
  PlainLoss(const Problem& problem, const Operands& operands)
      : p_(problem),
        o_(operands),
        scale_(problem.attention.softmax_scale.value_or(
            static_cast<float>(1.0 / std::sqrt(double(problem.attention.head_dim))))),
        index_scale_(problem.index.scale.value_or(
            static_cast<float>(1.0 / std::sqrt(double(problem.index.dim))))),
        d_index_q_(operands.d_index_q),
        d_index_k_(operands.d_index_k) {
    if (o_.loss) loss_.assign(static_cast<std::size_t>(o_.loss.shape[0] * o_.loss.shape[1]), 0.0);
  }

  GradientMarks run(const Answer& answer) {
    for (const Request& r : requests_of(p_, o_.batch)) {
      for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
        for (std::int64_t h = 0; h < p_.index.heads; ++h) row(r, i, h);
      }
    }
    const Operands& e = answer.operands();
    GradientMarks marks;
    marks.loss = loss_;
    marks.d_index_q = d_index_q_.marks(e.d_index_q, index_scale_, false);
    marks.d_index_k = d_index_k_.marks(e.d_index_k, index_scale_, p_.gradients.accumulate);
    return marks;
  }

 private:
  struct Key {
    std::int64_t key;
    double teacher = 0, teacher_error = 0, score = 0, score_error = 0;
  };

  void row(const Request& r, std::int64_t i, std::int64_t head) {
    const std::int64_t at = r.q_begin + i, shared = p_.index.heads / p_.index.heads_k;
    std::vector<Key> keys;
    const auto take = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t key = begin; key < end; ++key) keys.push_back({key});
    };
    if (!o_.block_ids_in) take(0, r.visible_keys(i));
    for (std::int64_t s = 0; o_.block_ids_in && s < o_.block_ids_in.shape[2]; ++s) {
      const std::int32_t id = int_at(o_.block_ids_in, at, head, s);
      if (id == -1) break;
      const auto [begin, end] = r.block_keys(i, id);
      take(begin, end);
    }
    const std::vector<float> query = floats_of_row(o_.index_q, at, head);
    double top = -double(kInf);
    for (Key& key : keys) {
      teach(r, at, head, key);
      const Product z =
          product(query, floats_of_row(o_.index_k, r.k_begin + key.key, head / shared));
      key.score = index_scale_ * z.sum;
      key.score_error = std::fabs(index_scale_) * z.size * sum_roundings(query.size()) +
                        4 * kRounding * (std::fabs(key.score) + 2);
      top = std::max(top, key.score);
    }
    double sum = 0, error = 0;
    for (const Key& key : keys) {
      sum += std::exp(key.score - top);
      // A score of minus infinity weighs exactly nothing.
      if (key.score != -double(kInf)) error = std::max(error, key.score_error);
    }
    const double lse = top + std::log(sum);
    if (keys.empty() || top == -double(kInf)) return;
    const double lse_error =
        error + 4 * kRounding * (std::fabs(lse) + 2) + sum_roundings(keys.size());
    add(r, at, head, shared, keys, query, lse, lse_error);
  }

  void teach(const Request& r, std::int64_t at, std::int64_t head, Key& key) const {
    const std::int64_t group = p_.attention.heads_q / p_.attention.heads_kv;
    const std::vector<float> k = floats_of_row(o_.k, r.k_begin + key.key, head);
    for (std::int64_t h = head * group; h < (head + 1) * group; ++h) {
      const double lse = float_at(o_.lse_in, at, h);
      if (lse == -double(kInf)) continue;
      const Product s = product(floats_of_row(o_.q, at, h), k);
      const double weight = std::exp(scale_ * s.sum - lse) / double(group);
      if (weight == 0) continue;
      key.teacher += weight;
      key.teacher_error +=
          weight * (std::fabs(scale_) * s.size * sum_roundings(k.size()) +
                    4 * kRounding * (std::fabs(lse) + std::fabs(scale_ * s.sum) + 4)) +
          kUnderflow;
    }
  }

  void add(const Request& r, std::int64_t at, std::int64_t head, std::int64_t shared,
           const std::vector<Key>& keys, const std::vector<float>& query, double lse,
           double lse_error) {
    const double row_weight = o_.row_weight ? float_at(o_.row_weight, at) : 1.0;
    double loss_error = 0, loss_size = 0;
    for (const Key& key : keys) {
      const double student = std::exp(key.score - lse);
      const double error =
          key.teacher_error +
          (student == 0 ? 0.0 : student * (key.score_error + lse_error) + kUnderflow);
      const Rounded off = rounded(student - key.teacher, error, p_.index.q.storage);
      const Rounded weighed{row_weight * off.value, std::fabs(row_weight) * off.error};
      const std::int64_t place = r.k_begin + key.key;
      d_index_q_.add(at, head, weighed, floats_of_row(o_.index_k, place, head / shared));
      d_index_k_.add(place, head / shared, weighed, query);
      if (key.teacher == 0) continue;
      const double term = std::log(key.teacher) - (key.score - lse);
      loss_error +=
          key.teacher_error * (std::fabs(term) + 1) + key.teacher * (key.score_error + lse_error);
      loss_size += key.teacher * (std::fabs(term) + 1);
    }
    if (o_.loss) {
      loss_[static_cast<std::size_t>(at * p_.index.heads + head)] =
          kRoom * (loss_error + 4 * kRounding * loss_size);
    }
  }

  const Problem& p_;
  const Operands& o_;
  double scale_, index_scale_;
  Sums d_index_q_, d_index_k_;
  std::vector<double> loss_{};
};

void compare_rows(const char* name, const Tensor& given, const Tensor& expected,
                  const std::vector<double>& marks, Findings& found, std::int64_t first = 0) {
  if (!given) return;
  for (std::int64_t row = first; row < given.shape[0]; ++row) {
    const CallRow place{.row = row};
    for (std::int64_t head = 0; head < given.shape[1]; ++head) {
      const double mark = marks[static_cast<std::size_t>(row * given.shape[1] + head)];
      for (std::int64_t d = 0; d < (given.rank > 2 ? given.shape[2] : 1); ++d) {
        const double e = float_at(expected, row, head, d), g = float_at(given, row, head, d);
        const Place where{name, place, head, d};
        if (std::isfinite(round_to(static_cast<float>(e), given.dtype)) != std::isfinite(g)) {
          return found.fail(where() + both(e, g, mark));
        }
        if (std::isfinite(g)) check_number(found, e, g, mark, where);
        if (!found.failure.empty()) return;
      }
    }
  }
}

}  // namespace

GradientMarks marks_of_gradients(const Problem& problem, const Operands& operands,
                                 const Answer& answer) {
  if (problem.op == Op::IndexLoss) return PlainLoss(problem, operands).run(answer);
  return PlainBackward(problem, operands).run(answer);
}

void compare_gradients(const Operands& operands, const Answer& answer, const GradientMarks& marks,
                       Findings& found, std::int64_t first_key) {
  const Operands& e = answer.operands();
  compare_rows("dq", operands.dq, e.dq, marks.dq, found);
  compare_rows("dk", operands.dk, e.dk, marks.dk, found, first_key);
  compare_rows("dv", operands.dv, e.dv, marks.dv, found, first_key);
  compare_rows("loss", operands.loss, e.loss, marks.loss, found);
  compare_rows("d_index_q", operands.d_index_q, e.d_index_q, marks.d_index_q, found);
  compare_rows("d_index_k", operands.d_index_k, e.d_index_k, marks.d_index_k, found, first_key);
}

void expect_given_back(const Operands& operands, const Answer& answer, const GradientMarks& marks,
                       Findings& found) {
  constexpr double kMost = 0.7;  // of plain's error; a third of it was seen
  const Tensor& given = operands.dq;
  if (!given) return;
  const Tensor& expected = answer.operands().dq;
  double squares = 0;
  for (std::int64_t row = 0; row < given.shape[0]; ++row) {
    for (std::int64_t head = 0; head < given.shape[1]; ++head) {
      for (std::int64_t d = 0; d < given.shape[2]; ++d) {
        const double apart =
            double{float_at(given, row, head, d)} - double{float_at(expected, row, head, d)};
        squares += apart * apart;
      }
    }
  }
  if (squares <= kMost * kMost * marks.plain_dq) return;
  found.fail("dq: what rounding took from gradients of scores did not come back: errors are " +
             std::to_string(std::sqrt(squares / marks.plain_dq)) + " of those without, at most " +
             std::to_string(kMost) + " expected, as keys are alike");
}

}  // namespace msa::testkit
