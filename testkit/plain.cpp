// SPDX-License-Identifier: MIT
// Plain fp32 attention, one row at a time.
#include "testkit/plain.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "testkit/number.h"

namespace msa::testkit {

namespace {

constexpr double kEps = 0x1p-24;

std::vector<float> load_row(const std::byte* source, DType dtype, std::int64_t count) {
  std::vector<float> row(static_cast<std::size_t>(count));
  load(source, dtype, count, row.data());
  return row;
}

/// sum + a * b, the product rounded or, as compilers have it where the machine does, not: in fp64
/// it is exact.
template <bool kFused>
float add_product(float a, float b, float sum) {
  return kFused ? static_cast<float>(sum + static_cast<double>(a) * b) : sum + a * b;
}

/// Sum of products in kLanes running sums, as vector code has them.
template <int kLanes, bool kFused>
float dot(const float* a, const float* b, std::int64_t count) {
  std::array<float, kLanes> sums{};
  const std::int64_t whole = count / kLanes * kLanes;
  for (std::int64_t d = 0; d < whole; d += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane)
      sums[lane] = add_product<kFused>(a[d + lane], b[d + lane], sums[lane]);
  }
  for (std::int64_t d = whole; d < count; ++d)
    sums[d - whole] = add_product<kFused>(a[d], b[d], sums[d - whole]);
  float sum = 0;
  for (const float lane : sums) sum += lane;
  return sum;
}

/// Of the partial sums of `count` terms, whose order is not known: in random order their squares
/// come to this on average.
double sums_variance(std::int64_t count, double squares, double sum) {
  return static_cast<double>(count + 1) * (squares / 6 + sum * sum / 3);
}

/// Sums over the terms of a dot product.
struct ProductTerms {
  double sum = 0, squares = 0, magnitudes = 0;
};

ProductTerms terms_of(const float* a, const float* b, std::int64_t count) {
  constexpr int kLanes = 8;
  std::array<double, kLanes> sums{}, squares{}, magnitudes{};
  for (std::int64_t d = 0; d < count; ++d) {
    const double term = static_cast<double>(a[d]) * b[d];
    sums[d % kLanes] += term;
    squares[d % kLanes] += term * term;
    magnitudes[d % kLanes] += std::fabs(term);
  }
  ProductTerms terms;
  for (int lane = 0; lane < kLanes; ++lane) {
    terms.sum += sums[lane];
    terms.squares += squares[lane];
    terms.magnitudes += magnitudes[lane];
  }
  return terms;
}

/// Variance of a scaled score's roundings, where that of one rounding of 1 is 1: of products, of
/// their sums and of the product with the scale.
double score_variance(const ProductTerms& t, std::int64_t count, float scale) {
  return static_cast<double>(scale) * scale *
         (t.squares + sums_variance(count, t.squares, t.sum) + t.sum * t.sum);
}

/// One way to go about it that is as plain as the others.
struct Variant {
  int lanes;    // running sums of a score
  float scale;  // P is rounded against the maximum / scale
  bool base_2;  // works in powers of two, with the scale multiplied into q
  bool fused;   // products are not rounded
};

// One program's error can be small by luck. So there are several: they sum in other orders, and
// round P against other maxima (a running maximum that is not yet the final one does that). In f32
// all error is such luck, so there are more of them, a third with fused products.
constexpr int kMaxVariants = 12;
constexpr int kVariantsOf16Bits = 3;
constexpr std::array<Variant, kMaxVariants> kVariants{{
    {8, 1.0f, false, false},
    {1, 0.7391f, false, false},
    {16, 0.5457f, true, false},
    {4, 0.89123f, false, false},
    {2, 0.6317f, false, false},
    {1, 0.9543f, true, false},
    {16, 0.8117f, false, false},
    {8, 0.5911f, false, false},
    {4, 0.6873f, true, true},
    {1, 1.0f, false, true},
    {8, 0.7713f, false, true},
    {1, 0.9137f, true, true},
}};

/// visit.template operator()<n>() for the first `count` variants.
template <class Visit>
void for_variants(int count, const Visit& visit) {
  [&]<int... n>(std::integer_sequence<int, n...>) {
    ((n < count ? visit.template operator()<n>() : void()), ...);
  }
  (std::make_integer_sequence<int, kMaxVariants>{});
}

/// Sums over keys of an output's terms p v, or of weights p alone.
struct Terms {
  double sum = 0;
  double squares = 0;
  double variance = 0;  // of relative errors of p, each times the term's square
  double slope = 0;     // the same, times p times the term
};

/// The same where p is rounded to 16 bits.
struct RoundedTerms {
  double squares = 0;
  double alike = 0;  // squares of the sums of terms whose p round alike
  double magnitudes = 0;
};

// How many standard deviations of independent roundings a mark is at least (docs/numerics.md).
constexpr double kDeviations = 4.5;
constexpr double kDeviationsOf16Bits = 3.5;
constexpr double kDeviationsOfScaledValues = 5;

class PlainRow {
 public:
  PlainRow(const Problem& p, const Operands& o, const Request& r, std::int64_t row,
           std::int64_t kv_head, const KeyList& keys)
      : p_(p),
        o_(o),
        r_(r),
        row_(row),
        kv_head_(kv_head),
        keys_(keys),
        group_(p.attention.heads_q / p.attention.heads_kv),
        scale_(p.attention.kv.value_or(p.attention.q).scale),
        weights_(p.attention.q.storage == DType::E4M3 ? DType::BF16 : p.attention.q.storage),
        variants_(weights_ == DType::F32 ? kMaxVariants : kVariantsOf16Bits) {}

  PlainResult run() {
    result_.variants = variants_;
    result_.out.assign(static_cast<std::size_t>(variants_ * group_ * p_.attention.value_dim), 0.0f);
    score();
    weigh();
    accumulate();
    take_floor();
    const auto keys = static_cast<double>(keys_.size());
    result_.error_bound =
        4 * half_ulp(weights_) + 4 * (keys + 8) * kEps +
        8 * static_cast<double>(p_.attention.head_dim + 4) * kEps * largest_score_;
    return std::move(result_);
  }

 private:
  float& score_at(int variant, std::int64_t g, std::size_t n) {
    return scores_[(static_cast<std::size_t>(variant * group_ + g)) * keys_.size() + n];
  }
  double& variance_at(std::int64_t g, std::size_t n) {
    return variances_[static_cast<std::size_t>(g) * keys_.size() + n];
  }

  void score() {
    constexpr float kLog2E = 1.442695041f;
    const float scale = p_.attention.softmax_scale.value_or(
        static_cast<float>(1.0 / std::sqrt(static_cast<double>(p_.attention.head_dim))));
    std::vector<std::vector<float>> queries, scaled;
    for (std::int64_t g = 0; g < group_; ++g) {
      queries.push_back(load_row(address(o_.q, row_, kv_head_ * group_ + g), p_.attention.q.storage,
                                 p_.attention.head_dim));
      scaled.push_back(queries.back());
      for (float& x : scaled.back()) x *= scale * kLog2E;
    }
    scores_.resize(keys_.size() * static_cast<std::size_t>(variants_ * group_));
    variances_.resize(keys_.size() * static_cast<std::size_t>(group_));
    std::vector<float> key(static_cast<std::size_t>(p_.attention.head_dim));
    for (std::size_t n = 0; n < keys_.size(); ++n) {
      load_key(key_rows(p_, o_), r_, keys_[n], kv_head_, p_.attention.head_dim, key.data());
      for (std::int64_t g = 0; g < group_; ++g) {
        const float *q = queries[g].data(), *q2 = scaled[g].data();
        for_variants(variants_, [&]<int v>() {
          constexpr Variant way = kVariants[v];
          const float product =
              dot<way.lanes, way.fused>(way.base_2 ? q2 : q, key.data(), p_.attention.head_dim);
          score_at(v, g, n) = way.base_2 ? product : scale * product;
        });
        const ProductTerms terms = terms_of(q, key.data(), p_.attention.head_dim);
        variance_at(g, n) = score_variance(terms, p_.attention.head_dim, scale);
        if (std::isfinite(terms.magnitudes))
          largest_score_ = std::max(largest_score_, std::fabs(scale) * terms.magnitudes);
      }
    }
  }

  /// Scores become weights relative to the row's maximum; sums_ their sums.
  void weigh() {
    sums_.assign(static_cast<std::size_t>(variants_ * group_), 0.0f);
    result_.lse.reserve(sums_.size());
    for (std::int64_t row = 0; row < variants_ * group_; ++row) {
      const auto begin = scores_.begin() + row * static_cast<std::ptrdiff_t>(keys_.size());
      const auto end = begin + static_cast<std::ptrdiff_t>(keys_.size());
      const float top = begin == end ? -kInf : *std::max_element(begin, end);
      const bool binary = kVariants[row / group_].base_2;
      if (row < group_) {  // what is subtracted from the maximum is rounded, and so is its power
        for (std::size_t n = 0; n < keys_.size(); ++n) {
          const double below = static_cast<double>(begin[static_cast<std::ptrdiff_t>(n)]) - top;
          variance_at(row, n) += below * below + 1;
        }
      }
      for (auto s = begin; s != end; ++s) {
        const float weight = binary ? std::exp2(*s - top) : std::exp(*s - top);
        *s = top == -kInf ? 0.0f : weight;
        sums_[row] += *s;
      }
      const double unit = binary ? std::log(2.0) : 1.0;
      result_.lse.push_back(unit * top + std::log(static_cast<double>(sums_[row])));
      if (row < group_) result_.lse_floor.push_back(lse_deviations(row) / 2);
    }
  }

  /// Of a row's lse, which moves with each score by its key's share of the weights.
  double lse_deviations(std::int64_t g) {
    double variance = 0;
    for (std::size_t n = 0; n < keys_.size(); ++n) {
      const double share = share_of(g, n);
      if (share != 0) variance += share * share * variance_at(g, n);
    }
    return std::isfinite(variance) ? kDeviations * kEps / std::sqrt(3.0) * std::sqrt(variance) : 0;
  }

  void accumulate() {
    const std::int64_t dim = p_.attention.value_dim;
    std::vector<float> value(static_cast<std::size_t>(dim));
    const auto outputs = static_cast<std::size_t>(group_ * dim);
    if (weights_ == DType::F32) {
      terms_.assign(outputs, Terms{});
      row_terms_.assign(static_cast<std::size_t>(group_), Terms{});
    } else {
      rounded_.assign(outputs, RoundedTerms{});
    }
    for (std::size_t n = 0; n < keys_.size(); ++n) {
      load_key(value_rows(p_, o_), r_, keys_[n], kv_head_, dim, value.data());
      for (const float v : value) {
        if (std::isfinite(v)) result_.largest_v = std::max<double>(result_.largest_v, std::fabs(v));
      }
      if (weights_ == DType::F32) {
        add_terms(n, value);
      } else {
        add_rounded(n, value);
        if (scale_ == Scale::Page) add_to_page(n, value);
      }
      for_variants(variants_, [&]<int v>() {
        for (std::int64_t g = 0; g < group_; ++g) {
          const float weight = round_to(score_at(v, g, n) * kVariants[v].scale, weights_);
          float* out = &result_.out[(v * group_ + g) * dim];
          for (std::int64_t d = 0; d < dim; ++d)
            out[d] = add_product<kVariants[v].fused>(weight, value[d], out[d]);
        }
      });
    }
    for (std::int64_t row = 0; row < variants_ * group_; ++row) {
      const float sum = sums_[row] * kVariants[row / group_].scale;
      float* out = &result_.out[row * dim];
      for (std::int64_t d = 0; d < dim; ++d) out[d] = sum == 0 ? 0.0f : out[d] / sum;
    }
  }

  /// Key n's share in what roundings may cost.
  void add_terms(std::size_t n, const std::vector<float>& value) {
    for (std::int64_t g = 0; g < group_; ++g) {
      const double share = score_at(0, g, n) / sums_[g];
      if (share == 0) continue;
      const double variance = share * share * variance_at(g, n);
      Terms& row = row_terms_[static_cast<std::size_t>(g)];
      row.squares += share * share;
      row.variance += variance;
      Terms* terms = &terms_[g * static_cast<std::int64_t>(value.size())];
      for (std::size_t d = 0; d < value.size(); ++d) {
        const double v = std::isfinite(value[d]) ? value[d] : 0.0;
        terms[d].sum += share * v;
        terms[d].squares += share * share * v * v;
        terms[d].variance += variance * v * v;
        terms[d].slope += variance * v;
      }
    }
  }

  /// Key n's weight as a share of the row's.
  double share_of(std::int64_t g, std::size_t n) {
    const double share = score_at(0, g, n) / sums_[g];
    return std::isnan(share) ? 0.0 : share;
  }

  /// The same in 16 bits, where weights' own roundings count alone.
  void add_rounded(std::size_t n, const std::vector<float>& value) {
    for (std::int64_t g = 0; g < group_; ++g) {
      const double share = share_of(g, n);
      RoundedTerms* terms = &rounded_[g * static_cast<std::int64_t>(value.size())];
      for (std::size_t d = 0; d < value.size(); ++d) {
        const double term = share * (std::isfinite(value[d]) ? value[d] : 0.0f);
        terms[d].squares += term * term;
        terms[d].magnitudes += std::fabs(term);
      }
    }
  }

  /// Gathers values of a page, and adds its keys' share behind the last of them.
  void add_to_page(std::size_t n, const std::vector<float>& value) {
    page_.insert(page_.end(), value.begin(), value.end());
    const std::int64_t page_size = o_.v.shape[1];
    if (n + 1 < keys_.size() && keys_[n + 1] / page_size == keys_[n] / page_size) return;
    add_alike(n + 1 - page_.size() / value.size(), page_);
    page_.clear();
  }

  /// Values [keys, value_dim] from key `first` on that share a scale: weights within half a step of
  /// each other round alike once it multiplies them, all up or all down.
  void add_alike(std::size_t first, const std::vector<float>& values) {
    const auto dim = static_cast<std::size_t>(p_.attention.value_dim);
    std::vector<std::pair<double, std::size_t>> shares(values.size() / dim);  // share, key
    std::vector<double> sums(dim);
    for (std::int64_t g = 0; g < group_; ++g) {
      for (std::size_t n = 0; n < shares.size(); ++n) shares[n] = {share_of(g, first + n), n};
      std::sort(shares.begin(), shares.end());
      RoundedTerms* terms = &rounded_[g * static_cast<std::int64_t>(dim)];
      for (auto at = shares.begin(); at != shares.end();) {
        const double largest = at->first * (1 + half_ulp(weights_) / 2);
        std::fill(sums.begin(), sums.end(), 0.0);
        for (; at != shares.end() && at->first <= largest; ++at) {
          const float* value = &values[at->second * dim];
          for (std::size_t d = 0; d < dim; ++d)
            sums[d] += at->first * (std::isfinite(value[d]) ? value[d] : 0.0f);
        }
        for (std::size_t d = 0; d < dim; ++d) terms[d].alike += sums[d] * sums[d];
      }
    }
  }

  /// Variance of all roundings behind an output, where that of one rounding of 1 is 1: a weight's
  /// error counts by how far its value lies from the output; then products with values and their
  /// sums, the sum of weights, its inverse and the product with that.
  double variance_of(const Terms& row, const Terms& t) const {
    const auto keys = static_cast<std::int64_t>(keys_.size());
    const double square = t.sum * t.sum;
    const double weights = t.variance - 2 * t.sum * t.slope + square * row.variance;
    return std::max(weights, 0.0) + t.squares + sums_variance(keys, t.squares, t.sum) +
           square * (sums_variance(keys, row.squares, 1.0) + 2);
  }

  /// What none can be blamed for, half a mark: some standard deviations of independent roundings at
  /// the output where they are largest. In f32 of all roundings, in 16 bits of the weights', which
  /// another maximum deals anew, and a value's scale may lift just above a power of two.
  void take_floor() {
    const std::int64_t dim = p_.attention.value_dim;
    result_.error_floor.assign(static_cast<std::size_t>(group_), 0.0);
    for (std::int64_t g = 0; g < group_; ++g) {
      double largest = 0;
      for (std::int64_t at = g * dim; at < (g + 1) * dim; ++at) {
        largest =
            std::max(largest, weights_ == DType::F32
                                  ? deviation(kDeviations, variance_of(row_terms_[g], terms_[at]))
                                  : rounding_of_weights(rounded_[at]));
      }
      if (std::isfinite(largest)) result_.error_floor[g] = largest / 2;
    }
  }

  /// So many standard deviations of roundings; `variance` where that of one rounding of 1 is 1.
  double deviation(double count, double variance) const {
    return count * half_ulp(weights_) / std::sqrt(3.0) * std::sqrt(variance);
  }

  /// Of weights that round alike there may be so few that deviations say too much: all roundings at
  /// their largest are the end.
  double rounding_of_weights(const RoundedTerms& terms) const {
    const double count = scale_ != Scale::None ? kDeviationsOfScaledValues : kDeviationsOf16Bits;
    return std::max(deviation(count, terms.squares),
                    std::min(deviation(count, terms.alike), half_ulp(weights_) * terms.magnitudes));
  }

  const Problem& p_;
  const Operands& o_;
  const Request& r_;
  std::int64_t row_, kv_head_;
  const KeyList& keys_;
  std::int64_t group_;
  Scale scale_;    // of values
  DType weights_;  // what P is rounded to; beside queries in e4m3 bf16
  int variants_;
  std::vector<float> scores_{};          // [variants, group, keys]
  std::vector<float> sums_{};            // [variants, group]
  std::vector<double> variances_{};      // [group, keys]: of weights' relative errors
  std::vector<Terms> terms_{};           // [group, value_dim]: with p v; f32
  std::vector<Terms> row_terms_{};       // [group]: with p; f32
  std::vector<RoundedTerms> rounded_{};  // [group, value_dim]: with p v; 16 bits
  std::vector<float> page_{};            // [keys, value_dim]: values of a page so far; 16 bits
  double largest_score_ = 0;             // of scaled sums of magnitudes
  PlainResult result_{};
};

}  // namespace

PlainResult plain_attention(const Problem& problem, const Operands& operands,
                            const Request& request, std::int64_t row, std::int64_t kv_head,
                            const KeyList& keys) {
  return PlainRow(problem, operands, request, row, kv_head, keys).run();
}

PlainMerge plain_merge(const Operands& o, std::int64_t row, std::int64_t head) {
  const std::size_t parts = o.part_outs.size();
  const std::int64_t dim = o.out.shape[2];
  float top = -kInf;
  for (std::size_t n = 0; n < parts; ++n) top = std::max(top, float_at(o.part_lses[n], row, head));
  PlainMerge merge{.out = std::vector<float>(static_cast<std::size_t>(dim), 0.0f)};
  std::vector<double> terms(static_cast<std::size_t>(dim), 0.0);
  float sum = 0;
  for (std::size_t n = 0; n < parts && top != -kInf; ++n) {
    const float lse = float_at(o.part_lses[n], row, head);
    if (lse == -kInf) continue;
    const float weight = std::exp(lse - top);
    sum += weight;
    const std::vector<float> part =
        load_row(address(o.part_outs[n], row, head), o.part_outs[n].dtype, dim);
    for (std::int64_t d = 0; d < dim; ++d) {
      merge.out[d] += weight * part[d];
      terms[d] += std::fabs(static_cast<double>(weight) * part[d]);
    }
  }
  for (float& x : merge.out) x = sum == 0 ? 0.0f : x / sum;
  for (const double term : terms) {
    if (std::isfinite(term) && sum > 0) {
      merge.error_floor = std::max(merge.error_floor, 3 * kEps * term / sum);
    }
  }
  return merge;
}

ScoreBound score_of_block(const Tensor& queries, std::int64_t row, std::int64_t head,
                          const KeyRows& keys, std::int64_t key_head, const Request& request,
                          std::int64_t i, std::int64_t id) {
  const std::int64_t dim = queries.shape[2];
  const std::vector<float> query = load_row(address(queries, row, head), queries.dtype, dim);
  const auto [begin, end] = request.block_keys(i, id);
  std::vector<float> key(static_cast<std::size_t>(dim));
  ScoreBound result{.score = -std::numeric_limits<double>::infinity()};
  for (std::int64_t n = begin; n < end; ++n) {
    load_key(keys, request, n, key_head, dim, key.data());
    double sum = 0;
    for (std::int64_t d = 0; d < dim; ++d) sum += static_cast<double>(query[d]) * key[d];
    if (std::isnan(sum)) continue;
    result.score = std::max(result.score, sum);
    const double size = terms_of(query.data(), key.data(), dim).magnitudes;
    if (std::isfinite(size)) {
      result.error = std::max(result.error, static_cast<double>(dim + 2) * kEps * size);
    }
  }
  return result;
}

}  // namespace msa::testkit
