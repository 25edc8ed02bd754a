// SPDX-License-Identifier: MIT
#include "demo_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "testkit/number.h"
#include "testkit/random.h"
#include "testkit/requests.h"

namespace msa::cli {
namespace {

using testkit::Stream64;

constexpr std::int64_t kNeedles = 24;
constexpr std::uint64_t kNeedleStream = 900;
// With heads of 128 the planted index score is 128 +- 20, where the 16th best block of noise lies
// near 45 ...
constexpr float kIndexKey = 1;
constexpr float kIndexQuery = 1;
// ... and the planted attention score is 1.2 * 1.2 * sqrt(128) = 16.3: e^16.3 outweighs the noise
// of a million keys.
constexpr float kAttention = 1.2f;

/// row = keep * row + weight * signs, where the signs are one random vector of +1 and -1 for each
/// (needle, role).
void plant(const Tensor& tensor, std::int64_t row, std::int64_t head, const Stream64& random,
           std::uint64_t counter, float keep, float weight) {
  const std::int64_t dim = tensor.shape[tensor.rank - 1];
  std::vector<float> values(static_cast<std::size_t>(dim));
  std::byte* at = testkit::address(tensor, row, head);
  testkit::load(at, tensor.dtype, dim, values.data());
  for (std::int64_t d = 0; d < dim; ++d) {
    const bool negative = random.bits(counter * 4096 + static_cast<std::uint64_t>(d)) & 1;
    float& value = values[static_cast<std::size_t>(d)];
    value = keep * value + (negative ? -weight : weight);
  }
  testkit::store(values.data(), dim, tensor.dtype, at);
}

/// One needle in the index branch and in every KV head: key, value, and the row that asks.
void plant_needle(const testkit::Operands& o, const Needle& needle, const Stream64& random,
                  std::uint64_t n) {
  for (std::int64_t h = 0; h < o.index_k.shape[1]; ++h) {
    plant(o.index_k, needle.key, h, random, 4 * n, 1, kIndexKey);
  }
  for (std::int64_t h = 0; h < o.index_q.shape[1]; ++h) {
    plant(o.index_q, needle.asked_by, h, random, 4 * n, 1, kIndexQuery);
  }
  for (std::int64_t h = 0; h < o.k.shape[1]; ++h) {
    plant(o.k, needle.key, h, random, 4 * n + 1, 0, kAttention);
    plant(o.v, needle.key, h, random, 4 * n + 2, 0, 1);
  }
  for (std::int64_t h = 0; h < o.q.shape[1]; ++h) {
    plant(o.q, needle.asked_by, h, random, 4 * n + 1, 0, kAttention);
  }
}

testkit::Case demo_case(std::int64_t tokens, std::int64_t heads_q, std::int64_t heads_kv,
                        std::uint64_t seed) {
  return testkit::parse_case(fmt::format("op=msa regime=drift lse=1 heads={}/{} lens={}:{} seed={}",
                                         heads_q, heads_kv, tokens, tokens, seed));
}

}  // namespace

DemoData::DemoData(std::int64_t tokens, std::int64_t heads_q, std::int64_t heads_kv,
                   std::uint64_t seed, bool computed_here)
    : data(demo_case(tokens, heads_q, heads_kv, seed)),
      operands(computed_here ? data.prepare() : data.operands()) {
  const Stream64 random(seed, kNeedleStream);
  const testkit::Case& spec = data.spec();
  const std::int64_t reach = spec.topk * spec.block_size;
  for (std::int64_t n = 0; n < kNeedles; ++n) {
    // Rows that ask are spread evenly over the later part; each needle lies anywhere out of a
    // window's reach.
    const std::int64_t first = reach + spec.block_size;
    Needle needle;
    needle.asked_by = first + (tokens - first) * (n + 1) / kNeedles - 1;
    needle.key = random.below(static_cast<std::uint64_t>(n), needle.asked_by - reach);
    plant_needle(operands, needle, random, static_cast<std::uint64_t>(n) + 1);
    needles.push_back(needle);
  }
}

double value_read_back(const testkit::Operands& operands, const Tensor& out, const Needle& needle) {
  const std::int64_t dim = out.shape[2];
  const std::int64_t group = out.shape[1] / operands.v.shape[1];
  std::vector<float> got(static_cast<std::size_t>(dim)), planted(got);
  double worst = 1;
  for (std::int64_t h = 0; h < out.shape[1]; ++h) {
    testkit::load(testkit::address(out, needle.asked_by, h), out.dtype, dim, got.data());
    testkit::load(testkit::address(operands.v, needle.key, h / group), operands.v.dtype, dim,
                  planted.data());
    double dot = 0, norm_got = 0, norm_planted = 0;
    for (std::size_t d = 0; d < got.size(); ++d) {
      dot += static_cast<double>(got[d]) * planted[d];
      norm_got += static_cast<double>(got[d]) * got[d];
      norm_planted += static_cast<double>(planted[d]) * planted[d];
    }
    const double norms = std::sqrt(norm_got * norm_planted);
    worst = std::min(worst, norms > 0 ? dot / norms : 0.0);
  }
  return worst;
}

}  // namespace msa::cli
