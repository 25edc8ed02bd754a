// SPDX-License-Identifier: MIT
// How the CTA of an instance of the scoring kernel is cut: six consumer warps of 32 rows each and a
// producer warp. A row is one (token, index head); keys come 64 at a time, one block or half of
// one.
#pragma once

#include <cstdint>

#include "cuda/common/select/work.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/common/tile/pipeline.cuh"
#include "cuda/mma/select/config.h"

namespace msa::cuda::mma::select {

using common::kAllLanes;
using common::kMinusInf;
using common::RingPosition;
using common::select::Work;
using common::select::WorkQueue;

template <Config cfg>
struct Traits {
  static constexpr Config kConfig = cfg;
  using Item = common::ItemOf<cfg.storage>;

  static constexpr int kConsumers = 6;  // warps
  static constexpr int kWarpRows = 32;  // two m16 tiles: a key fragment is loaded for both
  static constexpr int kThreads = 32 * (kConsumers + 1);

  static constexpr int kKeys = 64;  // of a stage
  static constexpr int kStagesPerTile = kTileKeys / kKeys;
  static constexpr int kBoxes = kKeys / kBoxKeys;
  static constexpr int kChunks = cfg.dim / 8;  // of 16 bytes in a row
  static constexpr int kPanelBytes = kKeys * 128;
  static constexpr int kSteps = cfg.dim / 16;  // of the contraction
  static constexpr int kStageBytes = kKeys * cfg.dim * 2;
  // Two CTAs fit an SM of 100 KB.
  static constexpr int kStages = 48 * 1024 / kStageBytes;
  static constexpr int kCopyRows = 32 / kChunks;  // that a warp copies at a time
  // Arrivals that fill a stage: every lane's copies, and what lane 0 notes.
  static constexpr int kFillings = 33;
  static constexpr int kReleases = 32 * kConsumers;  // of a stage, or of an item

  // Keys whose scores a warp holds at a time: with 16 the compiler spills for 8.x and 12.x.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ / 100 != 9 && __CUDA_ARCH__ / 100 != 10
  static constexpr int kGroupKeys = 8;
#else
  static constexpr int kGroupKeys = 16;
#endif
  static constexpr int kGroupTiles = kGroupKeys / 8;

  static constexpr int kWorkSlots = 2;  // the producer is up to one item ahead

  struct Shared {
    alignas(128) std::uint8_t keys[kStages][kStageBytes];  // panels of 64 items, swizzled
    common::Ring<kStages> ring;
    std::uint32_t bad_boxes[kStages];  // boxes whose page id is out of range
    common::Ring<kWorkSlots> work_ring;
    Work work[kWorkSlots];
  };
  static constexpr int kSharedBytes = sizeof(Shared) + 128;  // room to align
  static_assert(kCtasPerSm * (kSharedBytes + 1024) <= 100 * 1024, "an SM of 8.6, 8.9 and 12.0");
  static_assert(kConsumers * kWarpRows == kTileRows, "as the host plans");
  static_assert(cfg.dim == 64 || cfg.dim == 128, "one or two panels of 64 columns");
};

}  // namespace msa::cuda::mma::select
