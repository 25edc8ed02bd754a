// SPDX-License-Identifier: MIT
// What scoring of codes leaves of a row and key tile, and what that says of scores: on the device
// and, for tests, on the host.
#pragma once

#include <cstdint>

#include "cuda/common/tile/filter_bounds.h"
#include "cuda/sm90/select/config.h"

namespace msa::cuda::sm90::select {

using common::Interval;
using common::KeyBound;
using common::kWidest;
using common::QueryBound;
using common::QueryUnit;

// The largest products of a key tile's parts in one word. The upper half: the largest of all, in
// units, cut off. Four bits of each part: how many steps it lies below, cut off, at most 15.
inline constexpr int kProductUnit = 64;
inline constexpr int kUnitsPerStep = 8;
inline constexpr int kMostSteps = 15;
inline constexpr int kNoProduct = -(1 << 15) * kProductUnit;  // of keys that a row does not see

/// Where the four bits of a part lie.
__host__ __device__ constexpr int steps_shift(int part) { return part % 2 * 8 + part / 2 * 4; }

/// The largest product of a key tile, in units.
__host__ __device__ inline int largest_of(std::uint32_t word) {
  return static_cast<std::int32_t>(word) >> 16;
}
__host__ __device__ inline int steps_of(std::uint32_t word, int part) {
  return static_cast<int>(word >> steps_shift(part) & kMostSteps);
}

/// Bounds of queries and keys whose numbers all lie below make a half-width that tells something.
inline constexpr float kPlain = 0x1p38f;

/// What a product of at least `low` and at most `high` units, each cut off, says of a score: what
/// `interval` says of any product between, rounded once less at either end, and
/// nothing is known where the largest product there is could reach kWidest. `kKnown`: it does not.
template <bool kKnown = false>
__host__ __device__ inline Interval bound_units(int low, int high, const QueryBound& query,
                                                const KeyBound& key) {
  constexpr float kInf = __builtin_inff();
  constexpr float kUnit = kProductUnit;
  constexpr float kCutOff = (kUnit - 1) / kUnit;
  const float scale = query.scale * kUnit * key.scale;
  const float width = fmaf(query.norm, key.error, fmaf(query.error, key.norm, key.floor));
  static_assert(2 * kUnit * kPlain * kPlain < kWidest * 0x1p-16f, "plain bounds are known");
  const bool known = kKnown || (width < kWidest && scale < kWidest * 0x1p-16f);
  const float lower = fmaf(static_cast<float>(low), scale, -width);
  const float upper = fmaf(static_cast<float>(high) + kCutOff, scale, width);
  return {known ? lower : -kInf, known ? upper : kInf};
}

/// Of a block, by the word of its key tile; `n`: its number there.
template <int kBlock, bool kKnown = false>
__host__ __device__ Interval bound_block(std::uint32_t word, int n, const QueryBound& query,
                                         const KeyBound& key) {
  const int most = largest_of(word);
  if constexpr (kBlock == kTileKeys) {
    return bound_units<kKnown>(most, most, query, key);
  } else {
    const int first = steps_of(word, 2 * n);
    const int second = steps_of(word, 2 * n + 1);
    const int steps = first < second ? first : second;
    const int high = most - steps * kUnitsPerStep;
    Interval x = bound_units<kKnown>(high - kUnitsPerStep + 1, high, query, key);
    if (steps == kMostSteps) x.lower = -__builtin_inff();  // as far below as may be
    return x;
  }
}

}  // namespace msa::cuda::sm90::select
