// SPDX-License-Identifier: MIT
// Tile sizes and shared memory of the attention kernel, derived from one Config.
#pragma once

#include "cuda/common/attend/job.cuh"
#include "cuda/common/scales.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/mma/attend/config.h"
#include "cuda/mma/ptx.cuh"

namespace msa::cuda::mma::attend {

using common::attend::Job;

/// What scales of keys need.
template <bool kKeyScales>
struct ScalesShared {};
template <>
struct ScalesShared<true> {
  float k_scales[2][kStepKeys];  // of even and odd steps
  float v_scales[2][kStepKeys];
};

template <Config cfg>
struct Traits {
  static constexpr Config kConfig = cfg;
#ifdef __CUDA_ARCH__
  static constexpr bool kIsCompiled = is_compiled_for(cfg, __CUDA_ARCH__ / 10);
#else
  static constexpr bool kIsCompiled = true;
#endif
  using Item = common::ItemOf<cfg.storage>;
  static constexpr int kHeadDim = cfg.head_dim;
  static constexpr bool kUnion = cfg.walk == Walk::Union;
  static constexpr bool kKeyScales = cfg.key_scales;
  static constexpr int kWarps = cfg.warps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpRows = kTileRows / kWarps;
  static constexpr int kTiles = kWarpRows / 16;  // products of 16 rows each, over the same keys
  static constexpr int kCtasPerSm = cfg.warps == 4 ? 2 : 1;
  static constexpr int kStages = cfg.stages;
  static constexpr int kPanels = kHeadDim / 64;  // of 128 bytes a row
  static constexpr int kStageBytes = kStepKeys * kHeadDim * 2;
  static_assert(kTiles == 1 || kTiles == 2, "active() has three answers");
  static_assert(kStages == 3 || kStages == 4, "one step ahead");
  static_assert(kHeadDim == 64 || kHeadDim == 128, "one or two panels of 64 columns");

  /// Where 16 keys of a step lie.
  struct KeyPlace {
    int page;   // as the table says
    int token;  // in its page, or the row of ragged keys
  };

  struct Shared : ScalesShared<cfg.key_scales> {
    alignas(128) std::uint8_t q[kTileRows * kHeadDim * 2];  // later the tile's output
    alignas(128) std::uint8_t ring[kStages][kStageBytes];   // keys, values, keys, ... of steps
    KeyPlace places[kAhead][kStepKeys / 16];
    common::attend::ListEntry entries[kAhead];  // of the step's block
    // Registers are few: what a step seldom asks for stays here.
    Job job;
    common::Folded<true> folded;  // what one scale for all keys of a head, and of values, come to
    int visible[kTileRows];       // keys that a row sees
    std::uint32_t tokens[kTileRows / 16];  // of the rows of a product, as bits of an entry
    std::uint8_t token[kTileRows];         // of a row
    int suspect;  // a page id was out of range, or scales do not fold: compute the tile again
  };
  static constexpr int kSharedBytes =
      tile_bytes(kHeadDim, kStages) + kBesideTiles + (cfg.key_scales ? kScaleBytes : 0);
  static_assert(sizeof(Shared) <= kSharedBytes, "what planning counts with");
};

}  // namespace msa::cuda::mma::attend
