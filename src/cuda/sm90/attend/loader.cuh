// SPDX-License-Identifier: MIT
// The loader: one warp that keeps the rings of k and v full. Page numbers are read one step ahead
// of their use.
#pragma once

#include "cuda/common/warp.cuh"
#include "cuda/sm90/attend/traits.cuh"
#include "cuda/sm90/ptx/copy.cuh"
#include "cuda/sm90/tile/key_box.cuh"

namespace msa::cuda::sm90::attend {

template <class Traits>
class Loader {
 public:
  __device__ __forceinline__ Loader(const Params& params, const Maps& maps,
                                    typename Traits::Shared& shared)
      : params_(params),
        maps_(maps),
        shared_(shared),
        lane_(threadIdx.x & 31),
        lanes_(key_box_lanes<Traits::kBlock, Traits::kPanels>(params.batch.page_size)) {}

  __device__ __forceinline__ void run() {
    while (load_tile()) {
    }
  }

 private:
  /// False where there is no further tile.
  __device__ __forceinline__ bool load_tile() {
    wait(&shared_.described[at_.stage], at_.parity);
    const Job& job = shared_.jobs[at_.stage];  // stays in shared memory: registers are few
    if (job.head == kNoHead) return false;
    const auto& list = shared_.lists[at_.stage];
    KeyBox next = locate(job, entry_of<Traits>(params_, job, list, 0).block);
    for (int i = 0; i < job.blocks; ++i) {
      const KeyBox box = next;
      if (i + 1 < job.blocks) next = locate(job, entry_of<Traits>(params_, job, list, i + 1).block);
      if (common::warp::any(box.bad)) mark_suspect(job.request);
      load_block(shared_.k_ring, k_at_, shared_.k[k_at_.stage], &maps_.k, job.head, box);
      load_block(shared_.v_ring, v_at_, shared_.v[v_at_.stage], &maps_.v, job.head, box);
    }
    shared_.q_ring.warp_release(at_, lane_);  // neither the job nor its mark is touched again
    at_.advance();
    return true;
  }

  __device__ __forceinline__ void load_block(Ring<Traits::kKeyStages>& ring,
                                             RingPosition<Traits::kKeyStages>& at,
                                             std::uint8_t* tile, const CUtensorMap* map, int head,
                                             const KeyBox& box) {
    __syncwarp();
    ring.wait_empty(at);
    if (lane_ == 0) ring.expect(at, Traits::kBlockBytes);
    __syncwarp();
    if (lane_ < lanes_) {
      load_key_box<Traits::kBlock, Traits::kPanels>(tile, map, &ring.full[at.stage], head, box,
                                                    params_.batch.page_size, lane_);
    }
    at.advance();
  }

  __device__ __forceinline__ KeyBox locate(const Job& job, int block) const {
    if (lane_ >= lanes_ || job.blocks == 0) return {};
    return locate_key_box<Traits::kBlock>(params_.batch, params_.requests[job.request], job.request,
                                          block, lane_ / Traits::kPanels);
  }

  /// The consumers see the mark after any later step of the tile: lane 0 writes it before it
  /// arrives at the barrier of this one.
  __device__ __forceinline__ void mark_suspect(int request_idx) {
    if (lane_ != 0) return;
    shared_.suspects[at_.stage] = 1;
    report(params_.batch.status, request_idx, -1, FaultKind::PageId);
  }

  const Params& params_;
  const Maps& maps_;
  typename Traits::Shared& shared_;
  const int lane_;
  const int lanes_;  // that issue copies
  RingPosition<Traits::kQueryStages> at_{};
  RingPosition<Traits::kKeyStages> k_at_{};
  RingPosition<Traits::kKeyStages> v_at_{};
};

}  // namespace msa::cuda::sm90::attend
