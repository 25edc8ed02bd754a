// SPDX-License-Identifier: MIT
// The producer warp: streams the blocks of an item, K and V of each in turn.
#pragma once

#include "cuda/sm90/decode/attend/item.cuh"
#include "cuda/sm90/tile/key_box.cuh"

namespace msa::cuda::sm90::decode {

template <class Traits>
class Producer {
 public:
  __device__ __forceinline__ Producer(const AttendParams& params, AttendShared<Traits>& shared,
                                      std::uint8_t* stages, RingPosition<Traits::kStages>& at,
                                      int lane)
      : params_(params),
        shared_(shared),
        stages_(stages),
        at_(at),
        lane_(lane),
        lanes_(key_box_lanes<Traits::kBlock, Traits::kPanels>(params.select.batch.page_size)) {}

  /// A rehearsal finds its first block and loads nothing.
  __device__ __forceinline__ void run(const RequestRecord& r, const Item& item, bool rehearsal) {
    const BatchParams& batch = params_.select.batch;
    for (int i = item.begin; i < item.end; ++i) {
      const int block = entry_block(params_, shared_.select, i);
      KeyBox box;
      if (lane_ < lanes_) {
        box =
            locate_key_box<Traits::kBlock>(batch, r, item.request, block, lane_ / Traits::kPanels);
      }
      const unsigned bad = warp::bad_boxes<Traits::kPanels>(box, lane_);
      if (rehearsal) return;
      if (bad != 0 && lane_ == 0) report(batch.status, item.request, -1, FaultKind::PageId);
      load(&params_.k_map, item.head, box, bad);
      load(&params_.v_map, item.head, box, bad);
    }
  }

 private:
  __device__ __forceinline__ void load(const CUtensorMap* map, int head, const KeyBox& box,
                                       unsigned bad) {
    shared_.ring.wait_empty(at_);
    if (lane_ == 0) {
      shared_.bad_boxes[at_.stage] = bad;  // the arrival below publishes it
      shared_.ring.expect(at_, Traits::kTileBytes);
    }
    __syncwarp();
    if (lane_ < lanes_) {
      load_key_box<Traits::kBlock, Traits::kPanels>(stages_ + at_.stage * Traits::kTileBytes, map,
                                                    &shared_.ring.full[at_.stage], head, box,
                                                    params_.select.batch.page_size, lane_);
    }
    at_.advance();
  }

  const AttendParams& params_;
  AttendShared<Traits>& shared_;
  std::uint8_t* stages_;
  RingPosition<Traits::kStages>& at_;
  const int lane_;
  const int lanes_;  // that issue copies
};

}  // namespace msa::cuda::sm90::decode
