// SPDX-License-Identifier: MIT
// Candidates of a selection: a score and a block id in one word whose order is the contract's order
// of preference, and the list that keeps the best k of a stream of them. Plain code, shared by all
// levels.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <limits>

namespace msa::cpu {

/// The larger word is the better candidate: higher score first (-0 equals +0), then lower id.
/// Scores hold no NaN.
using Candidate = std::uint64_t;

inline Candidate make_candidate(float score, std::int32_t id) {
  const auto u = std::bit_cast<std::uint32_t>(score + 0.0f);  // -0 becomes +0
  const std::uint32_t ordered = (u >> 31) != 0 ? ~u : u | 0x80000000u;
  return (static_cast<Candidate>(ordered) << 32) | (0xffffffffu - static_cast<std::uint32_t>(id));
}
inline float score_of(Candidate c) {
  const auto ordered = static_cast<std::uint32_t>(c >> 32);
  return std::bit_cast<float>((ordered >> 31) != 0 ? ordered & 0x7fffffffu : ~ordered);
}
inline std::int32_t id_of(Candidate c) {
  return static_cast<std::int32_t>(0xffffffffu - static_cast<std::uint32_t>(c));
}

/// Candidates that a list collects before it drops all but the best k: room for as many again makes
/// a drop cheap per candidate, and a threshold that lags behind by less than a factor of two of the
/// stream lets few useless ones in.
constexpr std::int64_t candidate_capacity(std::int64_t k) {
  return k + std::max<std::int64_t>(k, 16);
}

/// Threshold of a list that takes anything, -inf included: a score passes when it is greater or the
/// threshold is NaN.
inline constexpr float kTakeAll = std::numeric_limits<float>::quiet_NaN();
/// Threshold of a list that takes nothing.
inline constexpr float kTakeNone = std::numeric_limits<float>::infinity();

/// Leaves the best `k` of `count` candidates in front, in no order.
inline std::int64_t keep_best(Candidate* list, std::int64_t count, std::int64_t k) {
  if (count <= k) return count;
  if (k > 0) std::nth_element(list, list + (k - 1), list + count, std::greater<>{});
  return k;
}

/// Orders candidates by ascending id.
inline void sort_by_id(Candidate* list, std::int64_t count) {
  std::sort(list, list + count, [](Candidate a, Candidate b) {
    return static_cast<std::uint32_t>(a) > static_cast<std::uint32_t>(b);
  });
}

/// Appends to a list of capacity candidate_capacity(k), k > 0. Returns the new threshold for
/// candidates with ids above all before: ids that come in ascending order lose ties.
inline float push_candidate(Candidate* list, std::int32_t& count, std::int64_t k, float threshold,
                            Candidate candidate) {
  list[count++] = candidate;
  if (count < candidate_capacity(k)) return threshold;
  count = static_cast<std::int32_t>(keep_best(list, count, k));
  return score_of(list[k - 1]);
}

}  // namespace msa::cpu
