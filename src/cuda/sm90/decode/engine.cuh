// SPDX-License-Identifier: MIT
// What decode does with what this architecture alone has: the copy engine brings tiles.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/box.h"
#include "cuda/common/decode/launch.h"
#include "cuda/sm90/decode/score/launch.h"
#include "cuda/sm90/ptx/copy.cuh"
#include "cuda/sm90/tile/key_box.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace msa::cuda::sm90::decode {

struct Engine {
  /// Of attention, boxes of box_tokens(block, page) x 128 bytes; of scoring, of box_tokens(
  /// kScoreStep, page) whole rows.
  using Keys = CUtensorMap;
  static constexpr bool kClusters = true;
  static constexpr bool kBulkCopies = true;
  static constexpr int kFillings = 1;  // arrivals that fill a stage
  // Of attention: two CTAs an SM.
  static constexpr int kTileRingBytes = 96 * 1024;
  static_assert(kTileRingBytes >= common::decode::kMostSelectScratch,
                "the scratch of any selection lies where the ring will be");

  /// Blocks in front of a selection's candidates; of a rehearsal's they are other warps' place.
  static constexpr int kRehearsalRoom = common::decode::kSegmentBlocks;
  static __device__ __forceinline__ constexpr int segment_room(int /*max_blocks*/,
                                                               bool /*rehearsal*/) {
    return common::decode::kSegmentBlocks;
  }

  static constexpr ScoreTeams score_teams(const ScoreConfig& config) {
    return sm90::decode::score_teams(config);
  }
  // Threads that an SM's registers are planned for where teams read four bits: 80 each.
  static constexpr int kCrowdedThreads = 704;

  /// CTAs of scoring that fit an SM.
  static constexpr int step_ctas(int) { return 1; }

  static __device__ __forceinline__ void prefetch(const Keys& keys) {
    ptx::prefetch_tensormap(&keys);
  }
  /// Keys are streamed once.
  static __device__ __forceinline__ std::uint64_t streamed() {
    return ptx::createpolicy_evict_first();
  }
  /// By one lane, before all call what loads the stage.
  template <int kStages>
  static __device__ __forceinline__ void announce(Ring<kStages>& ring, RingPosition<kStages> at,
                                                  std::uint32_t bytes) {
    ring.expect(at, bytes);
  }

  /// A block of keys or values; `box` is where this lane's begins.
  template <class Traits>
  static __device__ __forceinline__ void load_tile(std::uint8_t* stage, const Keys& keys,
                                                   ptx::Mbarrier* full, int head, const KeyBox& box,
                                                   const BatchParams& batch, int lane, int lanes) {
    if (lane >= lanes) return;
    load_key_box<Traits::kBlock, Traits::kPanels, kPanelItems, Traits::kPanelBytes>(
        stage, &keys, full, head, box, batch.page_size, lane);
  }

  /// A step of index keys; `box` as above, of 1 << shift keys.
  template <class Traits>
  static __device__ __forceinline__ void load_step(std::uint8_t* stage, const Keys& keys,
                                                   ptx::Mbarrier* full, const KeyBox& box,
                                                   const BatchParams&, int shift, int lane,
                                                   std::uint64_t policy) {
    if (lane >= common::decode::kScoreStep >> shift) return;
    ptx::cp_async_bulk_tensor_hint(stage + (lane << shift) * Traits::kRowBytes, &keys,
                                   {0, box.token, static_cast<int>(blockIdx.y), box.page}, full,
                                   policy);
  }

  /// Bytes side by side.
  static __device__ __forceinline__ void copy(std::uint8_t* to, std::uintptr_t from, int bytes,
                                              ptx::Mbarrier* full, std::uint64_t policy) {
    ptx::cp_async_bulk_hint(to, reinterpret_cast<const std::uint8_t*>(from), bytes, full, policy);
  }
};

}  // namespace msa::cuda::sm90::decode
