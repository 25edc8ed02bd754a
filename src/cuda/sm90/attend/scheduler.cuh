// SPDX-License-Identifier: MIT
// The scheduler: one warp that walks the CTA's tiles two ahead of everybody else. It describes each
// tile, copies the front of its list and loads its rows of q, so that the loader never waits for
// the chain of small reads behind a tile. It alone knows which tiles there are: the others work on
// what it announces.
#pragma once

#include "cuda/common/number.cuh"
#include "cuda/common/scales.cuh"
#include "cuda/geometry.cuh"
#include "cuda/sm90/attend/traits.cuh"
#include "cuda/sm90/ptx/copy.cuh"
#include "cuda/sm90/tile/descriptor.cuh"

namespace msa::cuda::sm90::attend {

template <class Traits>
class Scheduler {
 public:
  using Params = typename Traits::Params;
  using Maps = typename Traits::Maps;

  __device__ __forceinline__ Scheduler(const Params& params, const Maps& maps,
                                       typename Traits::Shared& shared)
      : params_(params), maps_(maps), shared_(shared), lane_(threadIdx.x & 31) {}

  __device__ __forceinline__ void run() {
    const int tiles = launch_tiles(params_);
    const int items = tiles * params_.heads_kv * params_.splits;
    // 32 rounds at a time, with one look at the lengths of their lists.
    for (int first = 0; first * static_cast<int>(gridDim.x) < items; first += 32) {
      const int item = work_item(first + lane_);
      const Place place = place_of(params_, item, tiles);
      const bool mine =
          item < items && (!Traits::kUnion || list_header(params_, place.head, place.slot).blocks <=
                                                  params_.longest_list);
      for (unsigned left = __ballot_sync(common::kAllLanes, mine); left != 0; left &= left - 1) {
        announce(place_of(params_,
                          __shfl_sync(common::kAllLanes, item, __ffs(static_cast<int>(left)) - 1),
                          tiles));
      }
    }
    announce_end();
  }

 private:
  __device__ __forceinline__ void announce_end() {
    shared_.q_ring.wait_empty(at_);
    if (lane_ == 0) shared_.jobs[at_.stage].head = kNoHead;
    ptx::mbarrier_arrive(&shared_.described[at_.stage]);
  }

  __device__ __forceinline__ void announce(const Place& place) {
    const int head = place.head;
    const Job job = common::attend::describe<Traits::kConfig.walk, Traits::kBlock>(params_, place);
    ListEntry entry{};
    if (Traits::kUnion && lane_ < job.blocks) entry = list_of(params_, job)[lane_];
    shared_.q_ring.wait_empty(at_);
    if constexpr (Traits::kUnion) shared_.lists[at_.stage][lane_] = entry;
    if (lane_ == 0) {
      shared_.jobs[at_.stage] = job;
      shared_.suspects[at_.stage] = 0;
      if constexpr (Traits::kFolds) fold_scales(head);
    }
    ptx::mbarrier_arrive(&shared_.described[at_.stage]);
    if constexpr (Traits::kRowBuffers < Traits::kQueryStages) {
      wait(&shared_.rows_read, rows_at_.parity ^ 1);
      rows_at_.advance();
    }
    if (lane_ == 0) load_rows(job.row, head);
    __syncwarp();
    at_.advance();
  }

  /// q, and dout where gradients are wanted.
  __device__ __forceinline__ void load_rows(int row, int head) {
    constexpr int kTensors = Traits::kGradients ? 2 : 1;
    shared_.q_ring.expect(
        at_, kTensors * Traits::kPanels * kPanelRowBytes * params_.group * params_.tokens_per_tile);
    const int buffer = Traits::row_buffer(at_.stage);
    load_panels(shared_.q[buffer], &maps_.q, row, head);
    if constexpr (Traits::kGradients) load_panels(shared_.dout[buffer], &maps_.dout, row, head);
  }
  __device__ __forceinline__ void load_panels(std::uint8_t* tile, const CUtensorMap* map, int row,
                                              int head) {
    for (int panel = 0; panel < Traits::kPanels; ++panel) {
      ptx::cp_async_bulk_tensor<4>(tile + panel * kTileRows * kPanelRowBytes, map,
                                   {panel * kPanelItems, 0, row, head},
                                   &shared_.q_ring.full[at_.stage]);
    }
  }

  /// What one scale for all keys of a head, and one for all values, come to.
  __device__ __forceinline__ void fold_scales(int head) {
    common::Folded<true> folded;
    if (params_.column_scales == 0)
      folded = common::fold_scales(params_.k_scales, params_.v_scales, 0, head);
    shared_.suspects[at_.stage] = folded.odd;
    shared_.folded[at_.stage] = folded;
  }

  const Params& params_;
  const Maps& maps_;
  typename Traits::Shared& shared_;
  const int lane_;
  RingPosition<Traits::kQueryStages> at_{};
  RingPosition<1> rows_at_{};  // where tiles share one buffer of rows
};

}  // namespace msa::cuda::sm90::attend
