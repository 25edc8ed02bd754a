// SPDX-License-Identifier: MIT
// The producer warp, which takes items and loads their keys, and the filler warps, which write what
// no row sees.
#pragma once

#include "cuda/common/rows.cuh"
#include "cuda/sm90/select/traits.cuh"
#include "cuda/sm90/tile/key_box.cuh"

namespace msa::cuda::sm90::select {

/// Logarithm of a block's parts.
__device__ __forceinline__ int part_shift(const BatchParams& batch) {
  return __ffs(batch.block_size) - __ffs(kPartKeys);
}

/// What four lanes in a row hold, from lane `first` on.
__device__ __forceinline__ int4 of_four_lanes(int x, int first) {
  return make_int4(__shfl_sync(kAllLanes, x, first), __shfl_sync(kAllLanes, x, first + 1),
                   __shfl_sync(kAllLanes, x, first + 2), __shfl_sync(kAllLanes, x, first + 3));
}

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
      if (item < items) work = locate(item);
      if (item >= items || !Traits::kConfig.scratch || work.first < work.end) {
        shared_.work_ring.wait_empty(slot);
        if (lane_ == 0) {
          shared_.work[slot.stage] = work;
          ptx::mbarrier_arrive(&shared_.work_ring.full[slot.stage]);
        }
        slot.advance();
        if constexpr (Traits::kListed) {
          load_listed(work);
        } else if constexpr (Traits::kFast) {
          load_coded(work);
        } else {
          load_keys(work);
        }
      }
      if (item >= items) return;
      if (lane_ == 0) item = gridDim.x + atomicAdd(p.next_item, 1u);
      item = __shfl_sync(kAllLanes, item, 0);
    }
  }

 private:
  __device__ __forceinline__ Work locate(unsigned item) const {
    const Params& p = params_;
    Work work = common::select::locate_work(p, item);
    if constexpr (Traits::kListed)
      work.end = p.lists.sizes[static_cast<std::int64_t>(work.slot) * p.groups + work.group].x;
    return work;
  }

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
                                                     &shared_.ring.full[at_.stage], work.key_head,
                                                     box, p.batch.page_size, lane_);
      }
    }
  }

  /// The same with the scale of each box. Boxes of several key tiles are looked up together, as a
  /// scale lies behind a page number.
  __device__ __forceinline__ void load_coded(const Work& work) {
    const Params& p = params_;
    static_assert(Traits::kPanels == 1, "a lane a box");
    const int boxes = key_box_lanes<Traits::kKeys, 1>(p.batch.page_size);
    const int tiles_at_once = 32 / boxes;
#pragma unroll 1
    for (int first = work.first; first < work.end; first += tiles_at_once) {
      const int mine = first + lane_ / boxes;
      KeyBox box{0, kNoPage, false};
      if (mine < work.end)
        box = locate_key_box<Traits::kKeys>(p.batch, work.rows, work.request, mine, lane_ % boxes);
      const float scale = box.page == kNoPage ? NAN : scale_of(box.page, work.key_head);
      const unsigned all_bad = __ballot_sync(kAllLanes, box.bad);
      if (all_bad != 0 && lane_ == 0) report(p.batch.status, work.request, -1, FaultKind::PageId);
      const int tiles = min(tiles_at_once, work.end - first);
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile, at_.advance()) {
        const int source = tile * boxes + min(lane_, boxes - 1);
        const KeyBox at{__shfl_sync(kAllLanes, box.token, source),
                        __shfl_sync(kAllLanes, box.page, source), false};
        const int bits = __float_as_int(scale);
        const int4 front = of_four_lanes(bits, tile * boxes);
        const int4 back = of_four_lanes(bits, tile * boxes + 4);
        shared_.ring.wait_empty(at_);
        if (lane_ == 0) {
          shared_.scales[at_.stage][0] = front;
          shared_.scales[at_.stage][1] = back;
          shared_.bad_boxes[at_.stage] = all_bad >> tile * boxes & ((1u << boxes) - 1);
          shared_.ring.expect(at_, Traits::kTileBytes);
        }
        __syncwarp();
        if (lane_ < boxes) {
          load_key_box<Traits::kKeys, 1>(shared_.keys[at_.stage], key_map_,
                                         &shared_.ring.full[at_.stage], work.key_head, at,
                                         p.batch.page_size, lane_);
        }
      }
    }
  }

  /// NaN where it is no number from 0 on.
  __device__ __forceinline__ float scale_of(int page, int head) const {
    const FilterBounds<const float>& bounds = params_.bounds;
    const float scale = __ldg(bounds.data + page * bounds.stride_group + head * bounds.stride_head);
    return scale >= 0.0f && scale < INFINITY ? scale : NAN;
  }

  /// The parts of the tile's list, four to a key tile. 32 of them are looked up together.
  __device__ __forceinline__ void load_listed(const Work& work) {
    const Params& p = params_;
    constexpr int kTiles = 32 / kTileParts;
    const int* parts =
        p.lists.parts +
        (static_cast<std::int64_t>(work.slot) * p.groups + work.group) * p.lists.stride_parts;
    const int shift = part_shift(p.batch);
    int last_block = -1;  // of the parts before
    int blocks = 0;
#pragma unroll 1
    for (int first = work.first; first < work.end; first += kTiles) {
      const int mine = first * kTileParts + lane_;
      const int part = mine < work.end * kTileParts ? parts[mine] : kNoPart;
      KeyBox box{0, kNoPage, false};
      if (part != kNoPart)
        box = locate_key_box<kPartKeys>(p.batch, work.rows, work.request, part, 0);
      const unsigned all_bad = __ballot_sync(kAllLanes, box.bad);
      const int block = part >> shift;
      const int before = __shfl_up_sync(kAllLanes, block, 1);
      const bool begins = part != kNoPart && block != (lane_ == 0 ? last_block : before);
      const unsigned all_begin = __ballot_sync(kAllLanes, begins);
      const int slot = blocks + __popc(all_begin & (2u << lane_) - 1) - 1;
      last_block = __shfl_sync(kAllLanes, block, 31);
      blocks += __popc(all_begin);
      const int tiles = min(kTiles, work.end - first);
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile, at_.advance()) {
        const int from = tile * kTileParts;
        const int4 four_parts = of_four_lanes(part, from), four_slots = of_four_lanes(slot, from);
        const int source = from + lane_ / Traits::kPanels % kTileParts;
        const KeyBox at{__shfl_sync(kAllLanes, box.token, source),
                        __shfl_sync(kAllLanes, box.page, source), false};
        shared_.ring.wait_empty(at_);
        if (lane_ == 0) {
          shared_.parts[at_.stage] = four_parts;
          shared_.slots[at_.stage] = four_slots;
          shared_.bad_boxes[at_.stage] = all_bad >> from & ((1u << kTileParts) - 1);
          shared_.ring.expect(at_, Traits::kTileBytes);
        }
        __syncwarp();
        if (lane_ < kTileParts * Traits::kPanels) {
          const int panel = lane_ % Traits::kPanels;
          const int row = lane_ / Traits::kPanels * kPartKeys;
          ptx::cp_async_bulk_tensor<4>(
              shared_.keys[at_.stage] + (panel * Traits::kKeys + row) * kPanelRowBytes, key_map_,
              {panel * kPanelItems, at.token, work.key_head, at.page},
              &shared_.ring.full[at_.stage]);
        }
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
