// SPDX-License-Identifier: MIT
// What decode does where there is no copy engine and there are no clusters: the lanes of a producer
// warp copy tiles, and CTAs of a row join through memory.
#pragma once

#include <cstdint>

#include "cuda/common/decode/launch.h"
#include "cuda/common/tile/pipeline.cuh"
#include "cuda/common/tile/swizzle.cuh"
#include "cuda/mma/decode/attend/launch.h"
#include "cuda/mma/decode/score/launch.h"
#include "cuda/mma/tile/copy_boxes.cuh"

namespace msa::cuda::mma::decode {

namespace ptx = common::ptx;

struct Engine {
  using Keys = KeyRows<const std::uint8_t>;  // bytes
  static constexpr bool kClusters = false;
  static constexpr bool kBulkCopies = false;
  static constexpr int kFillings = 33;  // arrivals that fill a stage: every lane's copies, a note
  static constexpr int kTileRingBytes = mma::decode::kTileRingBytes;

  /// Blocks in front of a selection's candidates, as many as rows are planned to have: its scratch
  /// lies where the ring will be. Of a rehearsal's they are other warps' place.
  static constexpr int kRehearsalRoom = 10 * 1024;
  static __device__ __forceinline__ int segment_room(int max_blocks, bool rehearsal) {
    return rehearsal ? kRehearsalRoom : common::decode::segment_blocks(max_blocks);
  }

  static constexpr ScoreTeams score_teams(const ScoreConfig& config) {
    return mma::decode::score_teams(config);
  }
  static constexpr int kCrowdedThreads = 640;  // of two: as many as two CTAs have

  static constexpr int step_ctas(int tiles) { return score_ctas_per_sm(tiles); }

  static __device__ __forceinline__ void prefetch(const Keys&) {}
  static __device__ __forceinline__ std::uint64_t streamed() { return 0; }

  /// By one lane, before all call what loads the stage.
  template <int kStages>
  static __device__ __forceinline__ void announce(common::Ring<kStages>& ring,
                                                  common::RingPosition<kStages> at,
                                                  std::uint32_t /*bytes*/) {
    ring.arrive(at);
  }

  /// A block of keys or values; `box` is where this lane's begins.
  template <class Traits>
  static __device__ __forceinline__ void load_tile(std::uint8_t* stage, const Keys& keys,
                                                   ptx::Mbarrier* full, int head,
                                                   const common::KeyBox& box,
                                                   const BatchParams& batch, int lane,
                                                   int /*lanes*/) {
    warp::copy_boxes<Traits::kBlock, Traits::kPanels, Traits::kRowChunks>(
        keys, box, head, batch, common::box_shift(Traits::kBlock, batch.page_size), lane,
        [&](int row, int chunk) -> std::uint8_t* {
          if constexpr (Traits::kPacked) return stage + common::packed_chunk(row, chunk);
          return stage + chunk / 8 * (Traits::kBlock * common::kPanelRowBytes) +
                 common::swizzled_chunk(row, chunk % 8);
        });
    ptx::cp_async_mbarrier_arrive_noinc(full);
  }

  /// A step of index keys; `box` as above, of 1 << shift keys.
  template <class Traits>
  static __device__ __forceinline__ void load_step(std::uint8_t* stage, const Keys& keys,
                                                   ptx::Mbarrier* full, const common::KeyBox& box,
                                                   const BatchParams& batch, int shift, int lane,
                                                   std::uint64_t /*policy*/) {
    warp::copy_boxes<common::decode::kScoreStep, 1, Traits::kRowBytes / 16>(
        keys, box, static_cast<int>(blockIdx.y), batch, shift, lane,
        [&](int row, int chunk) { return stage + row * Traits::kRowBytes + chunk * 16; });
    ptx::cp_async_mbarrier_arrive_noinc(full);
  }

  template <class Traits>
  struct Exchange {};
  template <class Shared>
  static __device__ __forceinline__ void init_exchange(Shared&) {}
  template <class Shared>
  static __device__ __forceinline__ void prepare_exchange(Shared&) {}
};

}  // namespace msa::cuda::mma::decode
