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
      : shared_(shared), warp_(warp), lane_(static_cast<int>(threadIdx.x & 31)) {}

  /// Until an item without queries, which goes on to the consumers.
  __device__ __forceinline__ void run() {
    for (int count = 1; count != 0;) {
      wait(&shared_.codes[at_.stage], at_.parity);
      count = shared_.items[at_.stage].count;
      if (count != 0) {
        widen(shared_.k[at_.stage]);
        widen(shared_.v[at_.stage]);
      }
      __syncwarp();
      if (lane_ == 0) shared_.kv_ring.arrive(at_);
      at_.advance();
    }
  }

 private:
  static constexpr int kTurns = 2;

  __device__ __forceinline__ void widen(std::uint8_t* tile) {
    widen_rows<typename Traits::Item, kBlock, Traits::kConverterWarps, kTurns>(tile, warp_, lane_);
  }

  typename Traits::Shared& shared_;
  const int warp_;
  const int lane_;
  RingPosition<Traits::kKeyStages> at_{};
};

}  // namespace msa::cuda::sm90::kvouter
