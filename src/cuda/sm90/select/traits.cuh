// SPDX-License-Identifier: MIT
// How the CTA of an instance of the scoring kernel is cut: a producer warp and three consumer
// warpgroups of 64 rows each. A row is one (token, index head); a key tile is 128 keys, one block
// or two.
#pragma once

#include <cstdint>

#include "cuda/common/select/work.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/sm90/select/config.h"
#include "cuda/sm90/tile/descriptor.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace msa::cuda::sm90::select {

using common::kAllLanes;
using common::kMinusInf;
using common::select::Work;
using common::select::WorkQueue;

template <Config cfg>
struct Traits {
  static constexpr Config kConfig = cfg;
  using Item = common::ItemOf<cfg.storage>;

  static constexpr int kWarpgroups = 3;  // measured: two lose a quarter of the rate, four a tenth
  static constexpr int kRows = 64 * kWarpgroups;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kConsumerRegisters = 152;
  static constexpr int kProducerRegisters = 56;

  static constexpr int kKeys = 128;  // of a key tile: n of the wgmma
  static constexpr int kBlocksPerTile = kKeys / cfg.block;
  static constexpr bool kFast = cfg.pass == Pass::Fast;
  static constexpr bool kCodes = cfg.pass == Pass::Codes || kFast;
  static constexpr bool kListed = cfg.pass == Pass::Listed;
  static constexpr int kRowBytes = cfg.dim * (kCodes ? 1 : 2);
  static constexpr int kPanels = kRowBytes / kPanelRowBytes;
  static constexpr int kSteps = kRowBytes / 32;  // of the contraction: k16, of codes k32
  static constexpr int kTileBytes = kKeys * kRowBytes;
  static constexpr int kStages = kCodes ? 12 : 6;  // of key tiles in flight, 192 KB at dim 128

  static constexpr int kWorkSlots = 2;  // the producer is up to one item ahead
  // Warps that read an item: the consumers and, where rows belong to the caller, two that fill what
  // no row sees.
  static constexpr int kReaders = 4 * kWarpgroups + (cfg.scratch ? 0 : 2);

  struct Shared {
    alignas(1024)
        std::uint8_t keys[kStages][kTileBytes];  // panel after panel, [128 keys][64 items] swizzled
    Ring<kStages> ring;
    std::uint32_t bad_boxes[kStages];   // boxes whose page id is out of range
    int4 parts[kListed ? kStages : 1];  // of a key tile, as its list has them
    int4 slots[kListed ? kStages : 1];  // of their blocks in the list
    Ring<kWorkSlots> work_ring;
    Work work[kWorkSlots];
    int4 scales[kFast ? kStages : 1][2];  // f32 of the boxes of a key tile
  };
  static constexpr int kSharedBytes = sizeof(Shared) + 1024;  // room to align
  static_assert(kSharedBytes <= 232448, "227 KB a CTA");
  static_assert(kRows == kTileRows && kKeys == kTileKeys, "as the host plans");
  static_assert(kWarpgroups * kConsumerRegisters + kProducerRegisters <= 4 * 128,
                "registers of a CTA's four warpgroups");
  static_assert(cfg.dim == 64 || cfg.dim == 128, "one or two panels of 64 columns");
  static_assert(cfg.pass == Pass::Scores || (cfg.scratch && cfg.dim == 128), "as filters are");
  static_assert(cfg.block == 64 || cfg.block == 128, "one or two blocks a key tile");
};

}  // namespace msa::cuda::sm90::select
