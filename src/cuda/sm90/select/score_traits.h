// SPDX-License-Identifier: MIT
// What one instance of the scoring kernel is made for, and how its CTA is cut: a producer warp and
// three consumer warpgroups of 64 rows each. A row is one (token, index head); a key tile is 128
// keys, one block or two.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/params.h"
#include "cuda/sm90/tile/pipeline.cuh"

namespace msa::cuda::sm90::select {

struct ScoreConfig {
  bool bf16 = true;     // else f16
  int dim = 128;        // 128 or 64
  int block = 128;      // 128 or 64
  bool scratch = true;  // rows of a tile one after the other, in float4s; else the caller's strides
};

/// One item of work: a tile of query rows and a span of key tiles. The producer warp writes it.
struct ScoreWork {
  RequestRecord rows;  // row 0 is the tile's first, seqlen_q their number
  int request;
  int slot;   // of the tile in this launch
  int group;  // index-K head
  int span;
  int first;  // key tiles [first, end)
  int end;
  int visible_end;  // key tiles that any row sees
  int valid_rows;   // rows (token, head) of the tile; -1: no more work
};

template <ScoreConfig kConfig>
struct ScoreTraits {
  static constexpr ScoreConfig config = kConfig;
  using Item = std::conditional_t<kConfig.bf16, __nv_bfloat16, __half>;

  static constexpr int kWarpgroups = 3;  // measured: two lose a quarter of the rate, four a tenth
  static constexpr int kRows = 64 * kWarpgroups;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kConsumerRegisters = 152;  // 3 * 152 + 56 = 4 * 128
  static constexpr int kProducerRegisters = 56;

  static constexpr int kKeys = 128;  // of a key tile: n of the wgmma
  static constexpr int kBlocksPerTile = kKeys / kConfig.block;
  static constexpr int kPanels = kConfig.dim / 64;
  static constexpr int kSteps = kConfig.dim / 16;  // k16 steps of the contraction
  static constexpr int kTileBytes = kKeys * kConfig.dim * 2;
  static constexpr int kStages = 6;  // of key tiles in flight, 192 KB at dim 128

  static constexpr int kWorkSlots = 2;  // the producer is up to one item ahead
  // Warps that read an item: the consumers and, where rows belong to the caller, two that fill what
  // no row sees.
  static constexpr int kReaders = 4 * kWarpgroups + (kConfig.scratch ? 0 : 2);

  struct Shared {
    alignas(1024)
        std::uint8_t keys[kStages][kTileBytes];  // panel after panel, [128 keys][64 items] swizzled
    Ring<kStages> ring;
    std::uint32_t bad_boxes[kStages];  // boxes whose page id is out of range
    Ring<kWorkSlots> work_ring;
    ScoreWork work[kWorkSlots];
  };
  static constexpr int kSharedBytes = sizeof(Shared) + 1024;  // room to align
};

}  // namespace msa::cuda::sm90::select
