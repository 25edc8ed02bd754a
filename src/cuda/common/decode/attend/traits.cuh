// SPDX-License-Identifier: MIT
// Tiles, shared memory and roles of decode attention.
#pragma once

#include <type_traits>

#include "cuda/common/decode/attend/launch.h"
#include "cuda/common/decode/select.cuh"
#include "cuda/common/four_bits.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/common/tile/pipeline.cuh"
#include "cuda/common/tile/swizzle.cuh"

namespace msa::cuda::common::decode {

template <AttendConfig cfg, class TilesBy>
struct AttendTraits {
  using Engine = TilesBy;
  using Item = common::ItemOf<cfg.storage>;
  static constexpr bool kRanks = false;   // a row lies on several GPUs, see ranks_kernel.cuh
  static constexpr bool kSelects = true;  // blocks may be Scored
  // Codes: keys and values come in e4m3 or, packed, in e2m1 two in a byte, and are widened to Item
  // between load and product.
  static constexpr bool kPacked = cfg.kv == Storage::E2m1;
  static constexpr bool kCodes = cfg.kv == Storage::E4m3 || kPacked;
  static constexpr int kKeyBits = bits_of(cfg.kv);
  // What is multiplied: codes widen to f16 in one instruction a pair, to bf16 in four. Queries in
  // bf16 become f16 where that is exact (state.cuh), weights are rounded to it.
  using Factor = std::conditional_t<kCodes, __half, Item>;
  static constexpr bool kUnits = kCodes;
  static constexpr bool kNarrows = kCodes && cfg.storage == Storage::Bf16;
  static constexpr int kBlock = cfg.block;
  static constexpr bool kHalvesBlocks = false;  // lists name blocks of 2 * kBlock keys, perhaps
  static constexpr int kDim = cfg.dim;
  static constexpr int kPanels = kPacked ? 1 : kDim / panel_items(kKeyBits);
  static constexpr int kPanelBytes = kDim * kKeyBits / 8 / kPanels;  // of a row
  static constexpr int kRowChunks = kDim * kKeyBits / 128;           // of 16 bytes
  static constexpr int kConsumers = 4;                               // warps
  // Arrivals that empty a stage and fill it. Lanes count where lanes read or write: racecheck does
  // not always see that __syncwarp puts them in front of another lane's arrival.
  static constexpr int kReleases = kConsumers * 32;
  static constexpr int kFillings = Engine::kFillings + (kCodes ? 32 : 0);
  static constexpr int kKeys = kBlock / kConsumers;  // of a block, for one warp
  static constexpr int kKeyTiles = kKeys / 8;        // n8 tiles of scores
  static constexpr int kSteps = kKeys / 16;          // k16 steps of P * V
  static constexpr int kDimTiles = kDim / 8;         // n8 tiles of the output
  static constexpr int kThreads = (kConsumers + 1) * 32;
  static constexpr int kTileBytes = kBlock * kDim * kKeyBits / 8;  // of K or V
  // Scales of groups lie behind their tile.
  static constexpr int kStageBytes =
      kTileBytes + (kPacked ? kBlock * static_cast<int>(sizeof(uint2)) : 0);
  // Two CTAs an SM: one selects while the other's loads are in flight.
  static constexpr int kCtasPerSm = 2;
  // What ptxas is told: with two, packed codes of blocks of 128 spill on 8.x, other codes
  // behind 9.0. Both fit all the same.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  static constexpr int kAttendBound = kPacked && kBlock == 128 ? 1 : kCtasPerSm;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 900
  static constexpr int kAttendBound = kCodes && !kPacked ? 1 : kCtasPerSm;
#else
  static constexpr int kAttendBound = kCtasPerSm;
#endif
  // Registers: lanes that copy packed codes and a rehearsal spill, behind 9.0 most instances with
  // one do. Before it nobody waits for scores, as launches follow each other.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
  static constexpr bool kRehearses = false;
#else
  static constexpr bool kRehearses = Engine::kClusters || !kPacked;
#endif
  // What ptxas is told of mending: with codes and two it has 168 registers a thread and spills.
  static constexpr int kMendBound = kCodes ? 1 : kCtasPerSm;
  static constexpr int kRingBytes = Engine::kTileRingBytes;
  // Behind the ring: a table of values' magnitudes, see value_table().
  static constexpr int kSpareBytes = kPacked ? common::kMagnitudeTable * 16 : 0;
  static constexpr int kStages = (kRingBytes - kSpareBytes) / kStageBytes;
  // Floats; keeps rows off each other's banks. Of codes a lane holds four neighbours, of packed
  // ones eight.
  static constexpr int kMergePitch = kDim + (kPacked ? 4 : kCodes ? 16 : 8);
  static_assert(kKeys % 16 == 0, "a warp takes whole k16 steps");
  static_assert(kRingBytes >= kConsumers * 16 * kMergePitch * 4,
                "the warps' outputs overlay the ring");
  static_assert(kBlock == 64 || kBlock == 128, "what the copy engine's boxes are made for");
  static_assert(kDim == 64 || kDim == 128, "one or two panels of 64 columns");
  static_assert(cfg.kv == cfg.storage || (kCodes && kDim == 128),
                "codes fill one panel of bytes or half of one");
};

template <AttendConfig cfg, class TilesBy>
struct RanksTraits : AttendTraits<cfg, TilesBy> {
  static constexpr bool kRanks = true;
};

enum NamedBarrier : int { kBarrierAttend = 1 };  // 0 is __syncthreads

/// What this CTA computes.
struct Item {
  std::int64_t row;  // token + first row of the request
  int request;
  int token;
  int head;  // KV head
  int tile;  // of 16 query heads in the group
  int split;
  int visible;      // keys that the row sees
  int num_entries;  // blocks of the row, all splits
  int begin, end;   // entries of this split
};

/// What comes with a tile of codes.
template <class Traits, int kCodeBits = Traits::kCodes ? Traits::kKeyBits : 0>
struct TileScales {};
template <class Traits>
struct TileScales<Traits, 8> {
  alignas(16) float scales[Traits::kStages][Traits::kBlock];  // 0 where the row sees no key
  int odd_scales[Traits::kStages];                            // some scale needs care
};
template <class Traits>
struct TileScales<Traits, 4> {
  common::Magnitudes
      magnitudes[common::kMagnitudeTable];  // of keys, and of values where theirs are the same
};

template <class Traits>
struct AttendShared : TileScales<Traits> {
  Ring<Traits::kStages> ring;            // tiles of K and V in turn
  unsigned bad_boxes[Traits::kStages];   // boxes of a tile of K whose page id was out of range
  float2 state[Traits::kConsumers][16];  // maximum and sum of each warp's share
  Item item;                             // but for its entries
  int last_arrival;
  typename Traits::Engine::template Exchange<Traits> exchange;
  SelectStorage select;
};

template <class Traits>
using ParamsOf = AttendParamsOf<typename Traits::Engine::Keys>;
template <class Traits>
using RanksParamsOf = RanksAttendParamsOf<typename Traits::Engine::Keys>;

/// Scales of groups in a stage, 0 where the row sees no key.
template <class Traits>
__device__ __forceinline__ uint2* groups_of(std::uint8_t* stage) {
  return reinterpret_cast<uint2*>(stage + Traits::kTileBytes);
}

/// Dynamic shared memory: the ring (1024-byte aligned), AttendShared.
template <class Traits>
constexpr int attend_shared_bytes() {
  constexpr int kBytes = 1024 + Traits::kRingBytes + static_cast<int>(sizeof(AttendShared<Traits>));
  static_assert(Traits::kCtasPerSm * (kBytes + 1024) <= 228 * 1024, "an SM has 228 KB");
  return kBytes;
}

}  // namespace msa::cuda::common::decode
