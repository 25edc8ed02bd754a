// SPDX-License-Identifier: MIT
// Tile sizes, shared memory and roles of the attention kernel, derived from one Config.
#pragma once

#include "cuda/common/attend/job.cuh"
#include "cuda/common/scales.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/sm90/attend/config.h"
#include "cuda/sm90/tile/descriptor.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace msa::cuda::sm90::attend {

using common::attend::Job;
using common::attend::launch_tiles;
using common::attend::list_header;
using common::attend::list_of;
using common::attend::Place;
using common::attend::place_of;

inline constexpr int kNoHead = -1;  // of a job: there is no further tile, and nothing else counts

/// What codes need beside the tiles.
template <bool kCodes, int kStages, int kBlock>
struct CodesShared {};
template <int kStages, int kBlock>
struct CodesShared<true, kStages, kBlock> {
  ptx::Mbarrier k_codes[kStages];  // codes are there, for the converter
  ptx::Mbarrier v_codes[kStages];
  alignas(16) float k_scales[kStages][kBlock];  // where they are the columns'
  alignas(16) float v_scales[kStages][kBlock];
};

/// What scales of heads need.
template <bool kFolds, int kQueryStages>
struct FoldsShared {};
template <int kQueryStages>
struct FoldsShared<true, kQueryStages> {
  common::Folded<true> folded[kQueryStages];
};

template <Config cfg>
struct Traits {
  static constexpr Config kConfig = cfg;
  using Params = attend::Params;
  using Maps = attend::Maps;
  using Item = common::ItemOf<cfg.storage>;
  static constexpr int kHeadDim = cfg.head_dim;
  static constexpr int kBlock = cfg.block;
  static constexpr bool kUnion = cfg.walk == Walk::Union;
  static constexpr int kPanels = kHeadDim / kPanelItems;
  // Codes: keys and values come as bytes, and a warpgroup more widens them to Item in their stage.
  static constexpr bool kCodes = cfg.kv == Storage::E4m3;
  static constexpr bool kFolds = kCodes || cfg.folds;
  static constexpr int kKeyItems = panel_items(bits_of(cfg.kv));  // of a panel in flight
  static constexpr int kKeyPanels = kHeadDim / kKeyItems;
  static constexpr int kQueryStages = 2;
  static constexpr int kRowBuffers = kQueryStages;  // of the rows of tiles
  static constexpr bool kGradients = false;         // of queries: see sm90/backward_queries
  static constexpr int kKeyStages = 2;              // 3 measured the same
  static constexpr int kConsumers = 2;              // warpgroups of 64 rows
  static constexpr int kConsumerWarps = 4 * kConsumers;
  static constexpr int kListedAhead = 32;  // one entry a lane; most lists are shorter
  static constexpr int kWarpgroups = kConsumers + 1 + (kCodes ? 1 : 0);
  static constexpr int kThreads = kWarpgroups * 128;
  static constexpr int kConverterWarps = kCodes ? 4 : 0;
  // Lanes that are done with a tile: consumers', loader's, converter's. Each arrives for itself, as
  // racecheck does not always see that __syncwarp puts it in front of another lane's arrival.
  static constexpr int kTileReleases = 32 * (kConsumerWarps + 1 + kConverterWarps);
  // Loader and scheduler spill with 40, the loader of codes with 56.
  static constexpr int kProducerRegisters = kCodes ? 64 : 56;  // the converter's, too
  static constexpr int kConsumerRegisters = kCodes ? 192 : 224;
  static constexpr int kQueryBytes = kTileRows * kHeadDim * 2;
  static constexpr int kBlockBytes = kBlock * kHeadDim * 2;
  static constexpr int kLoadBytes = kBlock * kKeyPanels * kPanelRowBytes;  // in flight
  static_assert(kConsumers * kConsumerRegisters + (kWarpgroups - kConsumers) * kProducerRegisters <=
                    (kCodes ? 4 * 128 : 3 * 168),
                "registers of a CTA's warpgroups");
  static_assert(cfg.kv == cfg.storage || (kCodes && kHeadDim == 128),
                "codes fill one panel of bytes, in the place of the second one of items");
  static_assert(kKeyStages >= 2,
                "a skipped block holds a stage while the one before is multiplied");
  static_assert(kHeadDim == 64 || kHeadDim == 128, "one or two panels of 64 columns");
  static_assert(kBlock == 64 || kBlock == 128, "n64 or n128 products");

  struct Shared : CodesShared<kCodes, kKeyStages, kBlock>, FoldsShared<kFolds, kQueryStages> {
    alignas(1024) std::uint8_t q[kQueryStages][kQueryBytes];  // later the tile's output
    alignas(1024) std::uint8_t k[kKeyStages][kBlockBytes];
    alignas(1024) std::uint8_t v[kKeyStages][kBlockBytes];
    Job jobs[kQueryStages];
    ListEntry lists[kQueryStages][kListedAhead];  // first entries of the tile's share of its list
    int suspects[kQueryStages];  // a page id was out of range: the tile must be computed again
    ptx::Mbarrier described[kQueryStages];  // jobs and lists are there
    ListEntry entries[kKeyStages];          // of the blocks in k
    Ring<kQueryStages> q_ring;
    Ring<kKeyStages> k_ring;
    Ring<kKeyStages> v_ring;
  };
  __device__ __forceinline__ static int row_buffer(int stage) { return stage; }
  // Dynamic shared memory is not aligned to 1024.
  static constexpr int kSharedBytes = sizeof(Shared) + 1024;
  static_assert(kSharedBytes <= 232448, "227 KB a CTA");
};

/// Named barriers; 0 is __syncthreads.
enum NamedBarrier : int { kBarrierConsumer0 = 1, kBarrierConsumer1 = 2 };

/// The tiles of a CTA: work item `round` of CTA `cta`. Every second round runs backwards over the
/// CTAs, so that the same CTA does not get the heaviest tile of each round (6 % at 8K dense).
__device__ __forceinline__ int work_item(int round) {
  const int cta =
      round & 1 ? static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x) : blockIdx.x;
  return round * static_cast<int>(gridDim.x) + cta;
}

/// Entry `i` of the tile's share of its list.
template <class Traits>
__device__ __forceinline__ ListEntry entry_of(const Params& params, const Job& job,
                                              const ListEntry (&front)[Traits::kListedAhead],
                                              int i) {
  if constexpr (Traits::kUnion) {
    if (i < Traits::kListedAhead) return front[i];
    const int2 raw = *reinterpret_cast<const int2*>(list_of(params, job) + i);
    return {raw.x, static_cast<std::uint32_t>(raw.y)};
  } else {
    return {job.first - i, 0};
  }
}

}  // namespace msa::cuda::sm90::attend
