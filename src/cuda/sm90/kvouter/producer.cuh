// SPDX-License-Identifier: MIT
// The producer warp: a block of keys and values for each work item, and the queries of its list
// gathered token by token, one copy a lane and panel. Rows behind the end of a list are read
// outside q, so they arrive as zeros.
#pragma once

#include "cuda/common/number.cuh"
#include "cuda/sm90/kvouter/lists.cuh"
#include "cuda/sm90/kvouter/traits.cuh"
#include "cuda/sm90/ptx/copy.cuh"
#include "cuda/sm90/tile/key_box.cuh"
#include "cuda/sm90/tile/widen.cuh"

namespace msa::cuda::sm90::kvouter {

template <class Traits>
class Producer {
 public:
  __device__ __forceinline__ Producer(const Params& params, const Maps& maps,
                                      typename Traits::Shared& shared, int chunk)
      : params_(params),
        maps_(maps),
        shared_(shared),
        items_(chunk_items(params, chunk)),
        entries_(chunk_entries(params, chunk)),
        lane_(static_cast<int>(threadIdx.x & 31)) {}

  /// Takes items in turn with the other CTAs, so that long lists do not leave some of them idle at
  /// the end.
  __device__ __forceinline__ void run(int num_items, int* next_item) {
    for (;;) {
      int at = 0;
      if (lane_ == 0) at = atomicAdd(next_item, 1);
      at = __shfl_sync(common::kAllLanes, at, 0);
      const WorkItem item = at < num_items ? items_[at] : WorkItem{};
      if constexpr (Traits::kCodes) {
        load_codes(item);
      } else {
        load_block(item);
      }
      if (item.count == 0) return;
      for (int first = 0; first < item.count; first += Traits::kTileTokens) gather(item, first);
    }
  }

 private:
  /// An item without queries tells the consumers that there are no more.
  __device__ __forceinline__ void load_block(const WorkItem& item) {
    const int page_size = params_.batch.page_size;
    const int lanes = item.count == 0 ? 0 : key_box_lanes<kBlock, Traits::kPanels>(page_size);
    KeyBox box;
    if (lane_ < lanes) {
      const RequestRecord request = params_.requests[item.request];
      box = locate_key_box<kBlock>(params_.batch, request, item.request, item.block,
                                   lane_ / Traits::kPanels);
    }
    const unsigned bad = warp::bad_boxes<Traits::kPanels>(box, lane_);
    if (bad != 0 && lane_ == 0) report(params_.batch.status, item.request, -1, FaultKind::PageId);
    shared_.kv_ring.wait_empty(kv_at_);
    if (lane_ == 0) {
      shared_.items[kv_at_.stage] = item;  // the arrival below publishes these
      shared_.bad_boxes[kv_at_.stage] = bad;
      shared_.kv_ring.expect(kv_at_, item.count == 0 ? 0 : 2 * Traits::kBlockBytes);
    }
    __syncwarp();
    if (lane_ < lanes) {
      ptx::Mbarrier* full = &shared_.kv_ring.full[kv_at_.stage];
      load_key_box<kBlock, Traits::kPanels>(shared_.k[kv_at_.stage], &maps_.k, full, item.head, box,
                                            page_size, lane_);
      load_key_box<kBlock, Traits::kPanels>(shared_.v[kv_at_.stage], &maps_.v, full, item.head, box,
                                            page_size, lane_);
    }
    kv_at_.advance();
  }

  /// The same for codes: what fills the stage is the converter's arrival.
  __device__ __forceinline__ void load_codes(const WorkItem& item) {
    const int page_size = params_.batch.page_size;
    const int lanes = item.count == 0 ? 0 : key_box_lanes<kBlock, Traits::kKeyPanels>(page_size);
    KeyBox box;
    if (lane_ < lanes) {
      const RequestRecord request = params_.requests[item.request];
      box = locate_key_box<kBlock>(params_.batch, request, item.request, item.block,
                                   lane_ / Traits::kKeyPanels);
    }
    const unsigned bad = warp::bad_boxes<Traits::kKeyPanels>(box, lane_);
    if (bad != 0 && lane_ == 0) report(params_.batch.status, item.request, -1, FaultKind::PageId);
    common::Folded<true> folded;
    // One page has the scales of the whole block; where it is none, no key counts.
    const unsigned found = __ballot_sync(common::kAllLanes, lane_ < lanes && box.page != kNoPage);
    const int page =
        __shfl_sync(common::kAllLanes, box.page, max(__ffs(static_cast<int>(found)) - 1, 0));
    if (found != 0 && lane_ == 0)
      folded = common::fold_scales(params_.k_scales, params_.v_scales, page, item.head);
    const int stage = kv_at_.stage;
    ptx::Mbarrier* arrived = &shared_.codes[stage];
    shared_.kv_ring.wait_empty(kv_at_);
    if (lane_ == 0) {
      shared_.items[stage] = item;  // the arrival below publishes these
      shared_.bad_boxes[stage] = bad;
      shared_.folded[stage] = folded;
      ptx::mbarrier_arrive_expect_tx(arrived, item.count == 0 ? 0 : 2 * Traits::kLoadBytes);
    }
    __syncwarp();
    if (lane_ < lanes) {
      load_key_box<kBlock, Traits::kKeyPanels, Traits::kKeyItems>(
          codes_of<kBlock>(shared_.k[stage]), &maps_.k, arrived, item.head, box, page_size, lane_);
      load_key_box<kBlock, Traits::kKeyPanels, Traits::kKeyItems>(
          codes_of<kBlock>(shared_.v[stage]), &maps_.v, arrived, item.head, box, page_size, lane_);
    }
    kv_at_.advance();
  }

  __device__ __forceinline__ void gather(const WorkItem& item, int first) {
    const int token = lane_ / Traits::kPanels;
    const int panel = lane_ % Traits::kPanels;
    int row = static_cast<int>(params_.batch.total_q);
    if (first + token < item.count && token < Traits::kTileTokens)
      row = entries_[item.begin + first + token].row;
    shared_.q_ring.wait_empty(q_at_);
    if (lane_ == 0) shared_.q_ring.expect(q_at_, Traits::kQueryBytes);
    __syncwarp();
    if (token < Traits::kTileTokens) {
      ptx::cp_async_bulk_tensor<4>(
          shared_.q[q_at_.stage] + panel * Traits::kQueryPanelBytes + token * Traits::kTokenBytes,
          &maps_.q, {panel * kPanelItems, 0, row, item.head}, &shared_.q_ring.full[q_at_.stage]);
    }
    q_at_.advance();
  }

  const Params& params_;
  const Maps& maps_;
  typename Traits::Shared& shared_;
  const WorkItem* items_;
  const Entry* entries_;
  const int lane_;
  RingPosition<Traits::kKeyStages> kv_at_{};
  RingPosition<Traits::kQueryStages> q_at_{};
};

}  // namespace msa::cuda::sm90::kvouter
