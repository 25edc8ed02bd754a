// SPDX-License-Identifier: MIT
// Tiles, shared memory and roles of decode scoring.
#pragma once

#include <cstdint>

#include "cuda/common/decode/score/launch.h"
#include "cuda/common/four_bits.cuh"
#include "cuda/common/scales.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/common/tile/pipeline.cuh"

namespace msa::cuda::common::decode {

template <ScoreConfig cfg, class TilesBy>
struct ScoreTraits {
  using Engine = TilesBy;
  using Item = common::ItemOf<cfg.storage>;
  // Keys in codes: bytes in the ring, widened to Item in front of the product.
  static constexpr bool kCodes = cfg.keys == Storage::E4m3;
  // Keys in four bits, a scale for every 16 items: a table makes Items of them (packed.cuh).
  static constexpr bool kPacked = cfg.keys == Storage::E2m1;
  // Codes of a filter: products are integers, and every key gives two bounds instead of a score.
  static constexpr bool kFilter = cfg.keys == Storage::I8;
  static constexpr int kSides = kFilter ? 2 : 1;  // lower and upper bounds
  static constexpr bool kNarrows = (kCodes || kPacked) && cfg.storage == Storage::Bf16;  // keys.cuh
  static constexpr int kKeyBits = bits_of(cfg.keys);
  static constexpr int kTiles = cfg.tiles;
  static constexpr int kDim = cfg.dim;
  static constexpr ScoreTeams kShared = Engine::score_teams(cfg);
  static constexpr int kTeams = kShared.teams;
  static constexpr int kTeamWarps = kShared.warps;
  static constexpr int kConsumers = kTeams * kTeamWarps;  // warps
  static constexpr int kProducers = kShared.producers;    // warps, too
  static constexpr int kThreads = (kConsumers + kProducers) * 32;
  // Arrivals that empty a stage: of lanes, as in attention (decode/attend/traits.cuh).
  static constexpr int kReleases = kTeamWarps * 32;
  // What ptxas is told.
  static constexpr bool kCrowded = kPacked && kConsumers > 4;
  static constexpr int kCtasPerSm = Engine::step_ctas(kTiles);
  static constexpr int kBoundThreads = kCrowded ? Engine::kCrowdedThreads : kThreads;
  // Of items, two CTAs fit without a word of it.
  static constexpr int kBoundCtas = !kCrowded && (kCodes || kFilter) ? kCtasPerSm : 1;
  static constexpr int kKeys = 32;  // of a part of a step: two m16 tiles of one warp
  static constexpr int kStepParts = kScoreStep / kKeys;
  static constexpr int kParts = kStepParts / kTeamWarps;  // of a warp
  static constexpr int kRowBytes = kDim * kKeyBits / 8;
  static constexpr int kChunks = kRowBytes / 64;        // 16-byte loads of a lane along one key
  static constexpr int kPairs = 16 * 8 / kKeyBits / 2;  // of items, in one of them
  static constexpr int kColumns = 8 * kTiles;
  static constexpr int kTileBytes = kScoreStep * kRowBytes;
  // Scales of groups lie behind their tile.
  static constexpr int kScaleBytes = kPacked ? kScoreStep * kRowScales : 0;
  static constexpr int kStageBytes = kTileBytes + kScaleBytes;
  static constexpr int kRingBytes = kShared.ring_bytes;
  // Each belongs to one team: another could take the lap before the last for its own.
  static constexpr int kStages = kRingBytes / kStageBytes / kTeams * kTeams;
  static constexpr int kSpan = 16 / kSides;  // steps whose maxima are written together
  static_assert(kKeys == kPartKeys, "as the host plans");
  static_assert(kDim == 64 || kDim == 128, "whole 16-byte loads of four lanes");
  static_assert(cfg.keys == cfg.storage || kCodes || kPacked || kFilter,
                "keys are stored as queries or in codes");
  static_assert(8 * kTiles <= kMaxColumns, "as the host plans");
  static_assert(!kPacked || (kDim == 128 && kRowScales == sizeof(uint2)), "a lane has two groups");
};

/// Named barriers; 0 is __syncthreads.
enum ScoreBarrier : int { kBarrierConsumers = 1, kBarrierTeams = 2 };  // a team each

/// Whether scales or bounds arrive with the keys, by every lane of the producer.
template <class Traits>
__device__ __forceinline__ bool arrives_with_scales(const ScoreParams& p) {
  return Traits::kFilter || (Traits::kCodes && !common::shares_scale(p.k_scales)) ||
         (Traits::kPacked && !(Traits::Engine::kBulkCopies &&
                               groups_are_dense(p.k_groups, p.batch.page_size, p.heads_k)));
}

/// The 16 bytes of a row, counted from 0, that lane % 4 takes as its chunk. Of codes it takes
/// neighbours, whatever their bits: those of the same values then give the same sums.
template <class Traits>
__device__ __forceinline__ int piece_of(int chunk, int lane) {
  if constexpr (Traits::kCodes || Traits::kPacked) return (lane & 3) * Traits::kChunks + chunk;
  return chunk * 4 + (lane & 3);
}

/// What a stage of the ring holds; request -1: nothing, and nothing follows.
struct alignas(16) StageNote {
  int request;
  int step;
  unsigned bad_tiles;  // each 16 keys, as bits, whose page id was out of range
};

/// The scales of a step's keys, 0 where there is no key.
template <class Traits, bool kCodes = Traits::kCodes>
struct StepScales {};
template <class Traits>
struct StepScales<Traits, true> {
  float scales[Traits::kStages][kScoreStep];
};

/// {scale, error, norm} of a step's keys, three after three: each 16 keys of pages; in ragged rows
/// the first and the last may be of fewer.
template <class Traits, bool kFilter = Traits::kFilter>
struct StepBounds {};
template <class Traits>
struct StepBounds<Traits, true> {
  float bounds[Traits::kStages][32];
};

/// What codes of four bits stand for.
template <class Traits, bool kPacked = Traits::kPacked>
struct CodeTable {};
template <class Traits>
struct CodeTable<Traits, true> {
  union {
    common::Magnitudes magnitudes[common::kMagnitudeTable];
    common::RoundedMagnitudes rounded[common::kMagnitudeTable];  // where values are
  };
};

/// Whether magnitudes are codes of e4m3 as they stand in the table. Widening by hand takes longer
/// than a table of items does.
__device__ __forceinline__ bool has_rounded_table(const ScoreParams& p) {
  return !ptx::kE4m3ByHand && p.k_groups.rounded != 0 && p.k_groups.all == nullptr;
}

/// Whether keys are multiplied as f16 where queries allow it.
template <class Traits>
__device__ __forceinline__ bool narrows(const ScoreParams& p) {
  return Traits::kCodes || (Traits::kPacked && has_rounded_table(p));
}

template <class Traits>
struct ScoreShared : StepScales<Traits>, StepBounds<Traits>, CodeTable<Traits> {
  Ring<Traits::kStages> ring;
  StageNote notes[Traits::kStages];
  /// Of a team: which steps of a request, and the maxima of their parts.
  struct Span {
    RequestRecord request;
    int steps[Traits::kSpan];
    float maxima[Traits::kSpan][Traits::kStepParts][Traits::kSides * Traits::kColumns];
  };
  Span spans[Traits::kTeams];
};

/// Dynamic shared memory: the ring (128-byte aligned), ScoreShared.
template <class Traits>
constexpr int score_shared_bytes() {
  constexpr int kBytes =
      128 + Traits::kStages * Traits::kStageBytes + static_cast<int>(sizeof(ScoreShared<Traits>));
  static_assert((Traits::kTeams > 1 ? 1 : 2) * (kBytes + 1024) <= 228 * 1024,
                "room for an attention CTA that waits beside one team");
  return kBytes;
}

}  // namespace msa::cuda::common::decode
