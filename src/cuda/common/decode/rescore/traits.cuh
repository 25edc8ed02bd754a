// SPDX-License-Identifier: MIT
// Tiles and shared memory of rescoring.
#pragma once

#include <cstdint>

#include "cuda/common/decode/rescore/launch.h"
#include "cuda/common/decode/score/traits.cuh"

namespace msa::cuda::common::decode {

/// Keys come straight from memory.
struct NoRing {
  static constexpr int kCrowdedThreads = 0;
  static constexpr ScoreTeams score_teams(const ScoreConfig&) { return {}; }
  static constexpr int step_ctas(int) { return 1; }
};

template <RescoreConfig cfg>
struct RescoreTraits {
  // What scoring of the same keys multiplies, with one column of its own: the same bits.
  using Score =
      ScoreTraits<ScoreConfig{.storage = cfg.storage, .tiles = 1, .dim = cfg.dim}, NoRing>;
  using Item = typename Score::Item;
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * 32;
  // Groups of blocks whose maxima give the bound of up to 16, and of more of them: numbers that are
  // alike modulo so many.
  static constexpr int kFewGroups = 128;
  static constexpr int kManyGroups = 256;
  static_assert(kFewGroups == 32 * 4, "a lane holds four neighbours");
  static_assert(kManyGroups == kThreads && kManyGroups >= 2 * kMaxTopk, "a thread ranks one");
};

template <class Traits>
struct RescoreShared {
  alignas(16) std::uint32_t maxima[Traits::kWarps * Traits::kFewGroups];
  int list[Traits::kThreads * kScoreStep / kPartKeys];  // parts to score
  int num_listed;
  std::uint32_t least;  // order that a block's upper bound must reach
  int count;            // candidates of the row
};

}  // namespace msa::cuda::common::decode
