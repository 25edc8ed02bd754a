// SPDX-License-Identifier: MIT
// The producer warp, which takes items and loads their keys, and the filler warps, which write what
// no row sees.
#pragma once

#include "cuda/common/rows.cuh"
#include "cuda/sm90/select/work.cuh"
#include "cuda/sm90/tile/key_box.cuh"

namespace msa::cuda::sm90::select {

/// The producer warp: takes items in turn and loads their keys. It takes the next one when it has
/// asked for the last keys of this one: early enough to hide the way there, late enough not to hold
/// work that an idle CTA could do. Items without keys are left out where nobody waits for them.
template <class Traits>
class Producer {
 public:
  __device__ __forceinline__ Producer(const Params& params, const CUtensorMap* key_map,
                                      typename Traits::Shared& shared)
      : params_(params), key_map_(key_map), shared_(shared), lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void run() {
    const Params& p = params_;
    const unsigned items = static_cast<unsigned>(p.num_tiles) * p.spans * p.groups;
    RingPosition<Traits::kWorkSlots> slot;
    unsigned item = blockIdx.x;
    while (true) {
      Work work;
      work.valid_rows = -1;
      work.first = work.end = 0;
      if (item < items) work = locate_work(p, item);
      if (item >= items || !Traits::kConfig.scratch || work.first < work.end) {
        shared_.work_ring.wait_empty(slot);
        if (lane_ == 0) {
          shared_.work[slot.stage] = work;
          ptx::mbarrier_arrive(&shared_.work_ring.full[slot.stage]);
        }
        slot.advance();
        load_keys(work);
      }
      if (item >= items) return;
      if (lane_ == 0) item = gridDim.x + atomicAdd(p.next_item, 1u);
      item = __shfl_sync(kAllLanes, item, 0);
    }
  }

 private:
  /// Key tiles [work.first, work.end) into the ring, box by box through the page table.
  __device__ __forceinline__ void load_keys(const Work& work) {
    const Params& p = params_;
    const int lanes = key_box_lanes<Traits::kKeys, Traits::kPanels>(p.batch.page_size);
    for (int tile = work.first; tile < work.end; ++tile, at_.advance()) {
      KeyBox box;
      if (lane_ < lanes) {
        box = locate_key_box<Traits::kKeys>(p.batch, work.rows, work.request, tile,
                                            lane_ / Traits::kPanels);
      }
      const unsigned bad = warp::bad_boxes<Traits::kPanels>(box, lane_);
      if (bad != 0 && lane_ == 0) report(p.batch.status, work.request, -1, FaultKind::PageId);
      shared_.ring.wait_empty(at_);
      if (lane_ == 0) {
        shared_.bad_boxes[at_.stage] = bad;
        shared_.ring.expect(at_, Traits::kTileBytes);
      }
      __syncwarp();
      if (lane_ < lanes) {
        load_key_box<Traits::kKeys, Traits::kPanels>(shared_.keys[at_.stage], key_map_,
                                                     &shared_.ring.full[at_.stage], work.group, box,
                                                     p.batch.page_size, lane_);
      }
    }
  }

  const Params& params_;
  const CUtensorMap* key_map_;
  typename Traits::Shared& shared_;
  const int lane_;
  RingPosition<Traits::kStages> at_{};
};

/// Two filler warps: -inf into the columns of an item's share that no row of the tile sees.
template <class Traits>
class Filler {
 public:
  __device__ __forceinline__ Filler(const Params& params, typename Traits::Shared& shared)
      : params_(params), queue_(shared) {}

  __device__ __forceinline__ void run() {
    const Params& p = params_;
    while (queue_.wait_next() >= 0) {
      const Work work = queue_.work();
      queue_.done();
      const std::int64_t share = p.span * Traits::kBlocksPerTile;
      const std::int64_t begin = max(
          work.span * share, static_cast<std::int64_t>(work.visible_end) * Traits::kBlocksPerTile);
      const std::int64_t end =
          work.span + 1 == p.spans ? p.columns : min(p.columns, (work.span + 1) * share);
      for (int r = threadIdx.x / 32 % 2; r < work.valid_rows; r += 2) {
        float* row = common::slots_of(p.scores, work.rows.q_begin + r / p.heads,
                                      work.group * p.heads + r % p.heads);
        for (std::int64_t c = begin + threadIdx.x % 32; c < end; c += 32) {
          row[c * p.scores.stride_slot] = kMinusInf;
        }
      }
    }
  }

 private:
  const Params& params_;
  WorkQueue<Traits> queue_;
};

}  // namespace msa::cuda::sm90::select
