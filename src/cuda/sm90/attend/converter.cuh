// SPDX-License-Identifier: MIT
// The converter: a warpgroup that widens codes of keys and values to items in their stages, between
// the loader, whose codes fill a barrier of their own, and the consumers. Keys go one block ahead
// of values, as the consumers take them: the stage of a key is free early in a step, that of a
// value at its end.
#pragma once

#include "cuda/sm90/attend/traits.cuh"
#include "cuda/sm90/tile/widen.cuh"

namespace msa::cuda::sm90::attend {

template <class Traits>
class Converter {
 public:
  __device__ __forceinline__ explicit Converter(typename Traits::Shared& shared)
      : shared_(shared),
        warp_(static_cast<int>(threadIdx.x & 127) >> 5),
        lane_(static_cast<int>(threadIdx.x & 31)) {}

  __device__ __forceinline__ void run() {
    while (tile()) {
    }
  }

 private:
  static constexpr int kTurns = 4;  // registers are few

  /// False where there is no further tile.
  __device__ __forceinline__ bool tile() {
    wait(&shared_.described[at_.stage], at_.parity);
    const Job& job = shared_.jobs[at_.stage];
    if (job.head == kNoHead) return false;
    for (int i = 0; i < job.blocks; ++i) {
      widen(shared_.k_codes, shared_.k_ring, k_at_, shared_.k[k_at_.stage]);
      if (i > 0) widen(shared_.v_codes, shared_.v_ring, v_at_, shared_.v[v_at_.stage]);
    }
    if (job.blocks > 0) widen(shared_.v_codes, shared_.v_ring, v_at_, shared_.v[v_at_.stage]);
    shared_.q_ring.warp_release(at_, lane_);
    at_.advance();
    return true;
  }

  __device__ __forceinline__ void widen(ptx::Mbarrier (&codes)[Traits::kKeyStages],
                                        Ring<Traits::kKeyStages>& ring,
                                        RingPosition<Traits::kKeyStages>& at, std::uint8_t* tile) {
    wait(&codes[at.stage], at.parity);
    widen_rows<typename Traits::Item, Traits::kBlock, Traits::kConverterWarps, kTurns>(tile, warp_,
                                                                                       lane_);
    __syncwarp();
    if (lane_ == 0) ring.arrive(at);
    at.advance();
  }

  typename Traits::Shared& shared_;
  const int warp_;
  const int lane_;
  RingPosition<Traits::kQueryStages> at_{};
  RingPosition<Traits::kKeyStages> k_at_{};
  RingPosition<Traits::kKeyStages> v_at_{};
};

}  // namespace msa::cuda::sm90::attend
