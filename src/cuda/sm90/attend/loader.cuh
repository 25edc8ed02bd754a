// SPDX-License-Identifier: MIT
// The loader: one warp that keeps the rings of k and v full. Page numbers are read one step ahead
// of their use.
#pragma once

#include "cuda/common/tile/key_scales.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/sm90/attend/traits.cuh"
#include "cuda/sm90/ptx/copy.cuh"
#include "cuda/sm90/tile/key_box.cuh"
#include "cuda/sm90/tile/widen.cuh"

namespace msa::cuda::sm90::attend {

template <class Traits>
class Loader {
 public:
  using Params = typename Traits::Params;
  using Maps = typename Traits::Maps;

  __device__ __forceinline__ Loader(const Params& params, const Maps& maps,
                                    typename Traits::Shared& shared)
      : params_(params),
        maps_(maps),
        shared_(shared),
        lane_(threadIdx.x & 31),
        lanes_(key_box_lanes<Traits::kBlock, Traits::kKeyPanels>(params.batch.page_size)) {}

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
    KeyBox behind{};  // codes: of the values, one block behind the keys
    for (int i = 0; i < job.blocks; ++i) {
      const KeyBox box = next;
      if (i + 1 < job.blocks) next = locate(job, entry_of<Traits>(params_, job, list, i + 1).block);
      if (common::warp::any(box.bad)) mark_suspect(job.request);
      if constexpr (Traits::kCodes) {
        load_keys(job, box, entry_of<Traits>(params_, job, list, i).block);
        if (i > 0) load_values(job, behind, entry_of<Traits>(params_, job, list, i - 1).block);
        behind = box;
      } else {
        if constexpr (Traits::kGradients)
          load_mean(job, entry_of<Traits>(params_, job, list, i).block);
        load_block(shared_.k_ring, k_at_, shared_.k[k_at_.stage], &maps_.k, job.head, box);
        load_block(shared_.v_ring, v_at_, shared_.v[v_at_.stage], &maps_.v, job.head, box);
      }
    }
    if constexpr (Traits::kCodes) {
      if (job.blocks > 0)
        load_values(job, behind, entry_of<Traits>(params_, job, list, job.blocks - 1).block);
    }
    shared_.q_ring.release(at_);  // neither the job nor its mark is touched again
    at_.advance();
    return true;
  }

  /// Gradients: what the keys of the block have in common, beside the keys in their stage. Bytes
  /// may arrive before load_block has said that all are awaited.
  __device__ __forceinline__ void load_mean(const Job& job, int block) {
    __syncwarp();
    shared_.k_ring.wait_empty(k_at_);
    if (lane_ != 0) return;
    const int stage = k_at_.stage;
    ptx::mbarrier_expect_tx(&shared_.k_ring.full[stage], Traits::kMeanBytes);
    ptx::cp_async_bulk(shared_.means[stage], mean_of(params_, job, block), Traits::kMeanBytes,
                       &shared_.k_ring.full[stage]);
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

  using Scaled = float[Traits::kBlock / 32];  // scales of a block: key lane + 32 i

  /// Codes, and their scales where those are the columns'.
  __device__ __forceinline__ void load_keys(const Job& job, const KeyBox& box, int block) {
    Scaled scales;
    load_scales(scales, params_.k_scales, job, box, block);
    load_coded_block(shared_.k_ring, k_at_, shared_.k_codes, shared_.k[k_at_.stage], &maps_.k,
                     job.head, box, scales, shared_.k_scales[k_at_.stage]);
  }
  __device__ __forceinline__ void load_values(const Job& job, const KeyBox& box, int block) {
    Scaled scales;
    load_scales(scales, params_.v_scales, job, box, block);
    load_coded_block(shared_.v_ring, v_at_, shared_.v_codes, shared_.v[v_at_.stage], &maps_.v,
                     job.head, box, scales, shared_.v_scales[v_at_.stage]);
  }

  __device__ __forceinline__ void load_scales(Scaled& to, const Scales& scales, const Job& job,
                                              const KeyBox& box, int block) const {
    if (params_.column_scales == 0) return;
    const int visible = job.limit - block * Traits::kBlock;
    common::warp::load_scales<Traits::kBlock, Traits::kKeyPanels>(
        to, scales, box, job.head, visible, params_.batch.page_size, lane_);
  }

  /// The scales, by an arrival of every lane, fill the stage beside the items that the converter
  /// makes of the codes.
  __device__ __forceinline__ void load_coded_block(Ring<Traits::kKeyStages>& ring,
                                                   RingPosition<Traits::kKeyStages>& at,
                                                   ptx::Mbarrier (&codes)[Traits::kKeyStages],
                                                   std::uint8_t* tile, const CUtensorMap* map,
                                                   int head, const KeyBox& box, const Scaled& from,
                                                   float (&scales)[Traits::kBlock]) {
    __syncwarp();
    ring.wait_empty(at);
    ptx::Mbarrier* arrived = &codes[at.stage];
    if (lane_ == 0) ptx::mbarrier_arrive_expect_tx(arrived, Traits::kLoadBytes);
    __syncwarp();
    if (lane_ < lanes_) {
      load_key_box<Traits::kBlock, Traits::kKeyPanels, Traits::kKeyItems>(
          codes_of<Traits::kBlock>(tile), map, arrived, head, box, params_.batch.page_size, lane_);
    }
    if (params_.column_scales != 0) {
      // What a scale beyond f32 makes of values is not what it makes of their sums.
      if (common::warp::any_odd_scale(from) && lane_ == 0) shared_.suspects[at_.stage] = 1;
#pragma unroll
      for (int i = 0; i < Traits::kBlock / 32; ++i) scales[i * 32 + lane_] = from[i];
    }
    ring.arrive(at);
    at.advance();
  }

  __device__ __forceinline__ KeyBox locate(const Job& job, int block) const {
    if (lane_ >= lanes_ || job.blocks == 0) return {};
    return locate_key_box<Traits::kBlock>(params_.batch, params_.requests[job.request], job.request,
                                          block, lane_ / Traits::kKeyPanels);
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
