// SPDX-License-Identifier: MIT
// The converter: warps that widen the codes of a block to items in their stage, between the
// producer and the consumers.
#pragma once

#include "cuda/sm90/kvouter/traits.cuh"
#include "cuda/sm90/tile/widen.cuh"

namespace msa::cuda::sm90::kvouter {

template <class Traits>
class Converter {
 public:
  /// `warp` of kConverterWarps.
  __device__ __forceinline__ Converter(typename Traits::Shared& shared, int warp)
      : shared_(shared), lane_(static_cast<int>(threadIdx.x & 31)), widener_(warp, lane_) {}

  /// Until an item without queries, which goes on to the consumers.
  __device__ __forceinline__ void run() {
    for (int count = 1; count != 0;) {
      wait(&shared_.codes[at_.stage], at_.parity);
      count = shared_.items[at_.stage].count;
      if (count != 0) {
        widener_.widen(shared_.k[at_.stage]);
        widener_.widen(shared_.v[at_.stage]);
      }
      __syncwarp();
      if (lane_ == 0) shared_.kv_ring.arrive(at_);
      at_.advance();
    }
  }

 private:
  static constexpr int kAhead = 1;  // two turns want more registers

  typename Traits::Shared& shared_;
  const int lane_;
  const Widener<typename Traits::Item, kBlock, Traits::kConverterWarps, kAhead> widener_;
  RingPosition<Traits::kKeyStages> at_{};
};

}  // namespace msa::cuda::sm90::kvouter
