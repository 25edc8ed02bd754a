// SPDX-License-Identifier: MIT
// The regimes of values.h.
#include "testkit/values.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "testkit/random.h"

namespace msa::testkit {

namespace {

// The drift regime. With these numbers 8 neighbouring queries of 64/4/128, blocks of 128, k = 16
// list 20 to 24 distinct blocks from 32K tokens on, nearly whatever the length: near the k-th of n
// normal scores their density grows with sqrt(log n) only. tests/testkit/drift_test.cpp holds them
// to it.
constexpr std::int64_t kKnot = 1024;   // tokens between two points of a slow path
constexpr float kQueryNoise = 0.088f;  // of one token against the path, up to 64K tokens
constexpr float kQuieter = 0.004f;     // less of it with every doubling from there
// Share of the path that queries and keys have in common: favours recent blocks.
constexpr float kCommonInQuery = 0.4f;
constexpr float kCommonInKey = 0.15f;
constexpr float kSinkInQuery = 0.5f;
constexpr float kSinkInKey = 1.5f;         // first key of the sequence
constexpr float kStripeInKey = 0.35f;      // one key of a stripe block
constexpr std::int64_t kStripeEvery = 64;  // one block in so many is a stripe

constexpr std::uint64_t kCommonStream = 100;
constexpr std::uint64_t kSinkStream = 101;
constexpr std::uint64_t kStripeStream = 102;
constexpr std::uint64_t kPathStream = 110;  // and the roles behind it

std::uint64_t stream_of(Role role) { return static_cast<std::uint64_t>(role) + 1; }

std::vector<float> knots(std::uint64_t seed, std::uint64_t stream, std::int64_t count) {
  const Stream64 random(seed, stream);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) values[i] = random.normal(i);
  return values;
}

/// Between two knots on an arc: unit variance everywhere. `t` in [0, 1).
void add_arc(const float* from, const float* to, float t, float weight, std::int64_t dim,
             float* out) {
  const float norm = weight / std::sqrt((1 - t) * (1 - t) + t * t);
  for (std::int64_t d = 0; d < dim; ++d) out[d] += norm * ((1 - t) * from[d] + t * to[d]);
}

}  // namespace

Values::Values(const Case& spec, Role role, std::int64_t dim, std::int64_t heads,
               std::int64_t longest)
    : spec_(spec), role_(role), dim_(dim), heads_(heads) {
  const bool index = role == Role::IndexQuery || role == Role::IndexKey;
  if (spec.regime != Regime::Drift || !index) return;
  knots_ = std::max<std::int64_t>(longest, 0) / kKnot + 2;
  const std::int64_t requests = spec.requests();
  common_path_ = knots(spec.seed, kCommonStream, requests * knots_ * dim);
  path_ = knots(spec.seed, kPathStream + stream_of(role), requests * heads * knots_ * dim);
  sink_ = knots(spec.seed, kSinkStream, dim);
  for (float& x : sink_) x = x < 0 ? -1.0f : 1.0f;
}

void Values::row(std::int64_t request, std::int64_t position, std::int64_t head, float* out) const {
  const std::uint64_t place =
      (static_cast<std::uint64_t>(request) << 28) + static_cast<std::uint64_t>(position);
  const std::uint64_t counter =
      (place * static_cast<std::uint64_t>(heads_) + static_cast<std::uint64_t>(head)) *
      static_cast<std::uint64_t>(dim_);
  const bool index = role_ == Role::IndexQuery || role_ == Role::IndexKey;
  if (role_ == Role::Gradient && spec_.regime != Regime::Integers) return normal(counter, out);
  switch (spec_.regime) {
    case Regime::Random:
      return normal(counter, out);
    case Regime::Drift:
      return index ? drift(request, position, head, out) : normal(counter, out);
    case Regime::Integers:
      return integers(counter, out);
    case Regime::Ties:
    case Regime::OneHot:
      return role_ == Role::Value && spec_.regime == Regime::Ties ? integers(counter, out)
                                                                  : ties(position, out);
    case Regime::Near:
      return index ? near(counter, out) : normal(counter, out);
    case Regime::Low:
      return role_ == Role::Value ? normal(counter, out) : low(counter, out);
    case Regime::Rising:
      return role_ == Role::Value ? normal(counter, out) : rising(position, out);
    case Regime::Offset:
      return offset(counter, out);
    case Regime::Wide:
      return wide(counter, out);
  }
}

void Values::normal(std::uint64_t counter, float* out) const {
  const Stream64 random(spec_.seed, stream_of(role_));
  for (std::int64_t d = 0; d < dim_; ++d) out[d] = random.normal(counter + d);
}

void Values::offset(std::uint64_t counter, float* out) const {
  normal(counter, out);
  if (role_ != Role::Key && role_ != Role::IndexKey) return;
  for (std::int64_t d = 0; d < dim_; ++d) out[d] += d % 2 == 0 ? 3.0f : -3.0f;
}

void Values::wide(std::uint64_t counter, float* out) const {
  normal(counter, out);
  if (role_ != Role::Query && role_ != Role::IndexQuery) return;
  for (std::int64_t d = 1; d < dim_; d += 4) out[d] *= 0x1p-60f;
}

void Values::drift(std::int64_t request, std::int64_t position, std::int64_t head,
                   float* out) const {
  const std::int64_t knot = position / kKnot;
  const float t = static_cast<float>(position % kKnot) * (1.0f / kKnot);
  const float* common = &common_path_[(request * knots_ + knot) * dim_];
  const float* own = &path_[((request * heads_ + head) * knots_ + knot) * dim_];
  const bool query = role_ == Role::IndexQuery;
  const float shared = query ? kCommonInQuery : kCommonInKey;
  const float rest = std::sqrt(1 - shared * shared);
  const std::uint64_t place =
      ((static_cast<std::uint64_t>(request) << 28) + static_cast<std::uint64_t>(position)) *
          static_cast<std::uint64_t>(heads_) +
      static_cast<std::uint64_t>(head);
  normal(place * static_cast<std::uint64_t>(dim_), out);
  if (query) {
    const auto doublings =
        static_cast<float>(std::bit_width(static_cast<std::uint64_t>(position) >> 16));
    const float noise = kQueryNoise - kQuieter * doublings;
    for (std::int64_t d = 0; d < dim_; ++d) out[d] = noise * out[d] + kSinkInQuery * sink_[d];
    add_arc(common, common + dim_, t, shared, dim_, out);
    add_arc(own, own + dim_, t, rest, dim_, out);
    return;
  }
  for (std::int64_t d = 0; d < dim_; ++d) out[d] *= rest;
  add_arc(common, common + dim_, t, shared, dim_, out);
  const std::int64_t block = position / spec_.block_size;
  const Stream64 stripes(spec_.seed, kStripeStream);
  float weight = 0;
  if (position % spec_.block_size == 0 && stripes.below(block, kStripeEvery) == 0) {
    weight = kStripeInKey;
  }
  if (position == 0) weight = kSinkInKey;
  for (std::int64_t d = 0; d < dim_; ++d) out[d] += weight * sink_[d];
}

void Values::integers(std::uint64_t counter, float* out) const {
  const Stream64 random(spec_.seed, stream_of(role_));
  const std::int64_t reach = role_ == Role::Value || role_ == Role::Gradient ? 8 : 2;
  for (std::int64_t d = 0; d < dim_; ++d) {
    out[d] = static_cast<float>(random.below(counter + d, 2 * reach + 1) - reach);
  }
}

/// Ones, so that all scores are equal; a one-hot v names its block (modulo the dim).
void Values::ties(std::int64_t position, float* out) const {
  if (role_ != Role::Value) {
    std::fill_n(out, dim_, 1.0f);
    return;
  }
  std::fill_n(out, dim_, 0.0f);
  out[position / spec_.block_size % dim_] = 1.0f;
}

/// Scores 1 + m / 2^20 with m below 32: exact in fp32, apart in the last bits only.
void Values::near(std::uint64_t counter, float* out) const {
  std::fill_n(out, dim_, 0.0f);
  const Stream64 random(spec_.seed, stream_of(role_));
  out[0] = 1;
  out[1] = role_ == Role::IndexQuery ? 0x1p-10f
                                     : static_cast<float>(random.below(counter, 32)) * 0x1p-10f;
}

/// Exact scores near -73 * 73 * dim, a few integers apart.
void Values::low(std::uint64_t counter, float* out) const {
  const bool query = role_ == Role::Query || role_ == Role::IndexQuery;
  std::fill_n(out, dim_, query ? 73.0f : -73.0f);
  const Stream64 random(spec_.seed, stream_of(role_));
  if (!query) out[0] += static_cast<float>(random.below(counter, 3));
}

/// A query gives key j the score j, exactly up to 16,384: a key too many or too few shows wherever
/// a row's window ends.
void Values::rising(std::int64_t position, float* out) const {
  constexpr std::int64_t kDigit = 64;
  const bool query = role_ == Role::Query || role_ == Role::IndexQuery;
  std::fill_n(out, dim_, 0.0f);
  out[0] = static_cast<float>(query ? kDigit : position / kDigit);
  out[1] = static_cast<float>(query ? 1 : position % kDigit);
}

}  // namespace msa::testkit
