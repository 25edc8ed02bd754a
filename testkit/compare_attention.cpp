// SPDX-License-Identifier: MIT
// Comparing attention and merged states; see compare_attention.h.
#include "testkit/compare_attention.h"

#include <algorithm>
#include <cmath>

#include "testkit/number.h"

namespace msa::testkit {

namespace {

/// Where scores cancel that are sums of large terms, fp32 arithmetic makes more than 1e-5.
double lse_tolerance(double expected, double plain_error = 0) {
  return std::max(1e-5 * std::max(1.0, std::fabs(expected)), 2 * plain_error);
}

}  // namespace

void AttentionComparison::row(const CallRow& row, const Answer& answer, Findings& found) const {
  const std::int64_t first = answer.part().kv_head_begin;
  const Operands& e = answer.operands();
  const std::int64_t at = row.row - answer.part().row_begin;
  if (p_.op == Op::MergeStates) return merge_row(row, e, at, found);
  const std::int64_t group = p_.attention.heads_q / p_.attention.heads_kv;
  for (std::int64_t h = 0; h < e.out.shape[1] / group; ++h) {
    attention_row(row, first + h, narrow(e.out, 0, at, 1), e.lse ? narrow(e.lse, 0, at, 1) : e.lse,
                  first, found);
  }
}

KeyList AttentionComparison::keys_of(const CallRow& row, std::int64_t kv_head) const {
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

/// How far the plain computation is from the oracle, for every query head of one KV head.
PlainErrors AttentionComparison::plain_errors(const CallRow& row, std::int64_t kv_head,
                                              const Tensor& out, const Tensor& lse,
                                              std::int64_t first, Findings& found) const {
  const std::int64_t group = p_.attention.heads_q / p_.attention.heads_kv;
  const KeyList keys = keys_of(row, kv_head);
  const PlainResult plain = plain_attention(p_, o_, *row.request, row.row, kv_head, keys);
  PlainErrors errors;
  errors.one_key = keys.size() == 1;
  const auto expect_agreement = [&](const char* field, std::int64_t g, double error, double bound) {
    if (error <= bound) return;
    found.fail(Place{field, row, kv_head * group + g}() +
               ": the oracle and the plain computation disagree by " + std::to_string(error));
  };
  for (std::int64_t g = 0; g < group; ++g) {
    const std::int64_t at = (kv_head - first) * group + g;
    const auto* expected = reinterpret_cast<const float*>(address(out, 0, at));
    double error = 0, lse_error = 0;
    for (int variant = 0; variant < plain.variants; ++variant) {
      const std::int64_t n = variant * group + g;
      error = std::max(error, distance(expected, &plain.out[n * p_.attention.value_dim]));
      if (!lse) continue;
      const double apart = std::fabs(plain.lse[n] - float_at(lse, 0, at));
      if (std::isfinite(apart)) lse_error = std::max(lse_error, apart);
    }
    expect_agreement("out", g, error, plain.error_bound * plain.largest_v);
    errors.out.push_back(std::max(error, plain.error_floor[g]));
    if (!lse) continue;
    expect_agreement("lse", g, lse_error, plain.error_bound + lse_tolerance(float_at(lse, 0, at)));
    errors.lse.push_back(std::max(lse_error, plain.lse_floor[g]));
  }
  return errors;
}

/// Every query head of one KV head. `out` and `lse` are the oracle's, [1, heads, ...], from KV
/// head `first` on.
void AttentionComparison::attention_row(const CallRow& row, std::int64_t kv_head, const Tensor& out,
                                        const Tensor& lse, std::int64_t first,
                                        Findings& found) const {
  const std::int64_t group = p_.attention.heads_q / p_.attention.heads_kv;
  PlainErrors own;
  PlainErrors& errors = known_ != nullptr ? known_->marks(row.row, kv_head) : own;
  if (errors.out.empty()) errors = plain_errors(row, kv_head, out, lse, first, found);
  for (std::int64_t g = 0; g < group; ++g) {
    const std::int64_t h = kv_head * group + g, at = (kv_head - first) * group + g;
    const auto* expected = reinterpret_cast<const float*>(address(out, 0, at));
    output_row(row, h, expected, errors.out[static_cast<std::size_t>(g)], !errors.one_key, found);
    if (!o_.lse) continue;
    const double e = float_at(lse, 0, at);
    check_number(found, e, float_at(o_.lse, row.row, h),
                 lse_tolerance(e, errors.lse[static_cast<std::size_t>(g)]), Place{"lse", row, h});
  }
}

/// What writing a number this large may cost: half an ulp where 16-bit outputs are rounded to
/// nearest, with room for the oracle's own rounding to f32.
double AttentionComparison::rounding(double largest) const {
  const DType dtype = o_.out.dtype;
  return (dtype == DType::F32 ? 1.0 : 0.502) * ulp(largest, dtype);
}

/// Largest distance where both are finite.
double AttentionComparison::distance(const float* a, const float* b) const {
  double largest = 0;
  for (std::int64_t d = 0; d < p_.attention.value_dim; ++d) {
    if (std::isfinite(a[d]) && std::isfinite(b[d])) {
      largest = std::max(largest, std::fabs(static_cast<double>(a[d]) - b[d]));
    }
  }
  return largest;
}

/// `out` of one row and head against the oracle's: finite or not first, then values.
void AttentionComparison::output_row(const CallRow& row, std::int64_t head, const float* expected,
                                     double plain_error, bool independent, Findings& found) const {
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
  if (independent) add_lean(expected, given.data(), tolerance, found);
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

/// One sample: elements of a row and head share the roundings of P and may err together.
void AttentionComparison::add_lean(const float* expected, const float* given, double tolerance,
                                   Findings& found) const {
  const std::int64_t dim = p_.attention.value_dim;
  double upward = 0, outward = 0;
  for (std::int64_t d = 0; d < dim; ++d) {
    const double error = static_cast<double>(given[d]) - expected[d];
    upward += error;
    outward += std::copysign(1.0, expected[d]) * error;
  }
  if (!std::isfinite(outward) || dim == 0 || tolerance <= 0) return;
  const double share = 1 / (tolerance * static_cast<double>(dim));
  found.upward.add(upward * share);
  found.outward.add(outward * share);
}

void AttentionComparison::merge_row(const CallRow& row, const Operands& e, std::int64_t at,
                                    Findings& found) const {
  for (std::int64_t h = 0; h < p_.attention.heads_q; ++h) {
    const float* expected = reinterpret_cast<const float*>(address(e.out, at, h));
    const PlainMerge plain = plain_merge(o_, row.row, h);
    const double error = std::max(distance(expected, plain.out.data()), plain.error_floor);
    output_row(row, h, expected, error, true, found);
    if (!o_.lse) continue;
    const double lse = float_at(e.lse, at, h);
    check_number(found, lse, float_at(o_.lse, row.row, h), lse_tolerance(lse),
                 Place{"lse", row, h});
  }
}

}  // namespace msa::testkit
