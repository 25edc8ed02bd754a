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
        lane_(static_cast<int>(threadIdx.x & 31)),
        widener_(static_cast<int>(threadIdx.x & 127) >> 5, lane_) {}

  __device__ __forceinline__ void run() {
    while (tile()) {
    }
  }

 private:
  static constexpr int kAhead = 2;

  /// Positions are counted: a number takes one register, a stage and its parity two.
  template <int kStages>
  __device__ __forceinline__ static RingPosition<kStages> position(unsigned n) {
    return {static_cast<int>(n % kStages), n / kStages & 1};
  }

  /// False where there is no further tile.
  __device__ __forceinline__ bool tile() {
    const auto at = position<Traits::kQueryStages>(tiles_);
    wait(&shared_.described[at.stage], at.parity);
    const int blocks = shared_.jobs[at.stage].blocks;
    if (shared_.jobs[at.stage].head == kNoHead) return false;
    // Key 0, key 1, value 0, ..., in one place: the code of a block is long.
    for (int i = 0; i <= blocks; ++i) {
#pragma unroll 1
      for (int values = 0; values < 2; ++values) {
        if (values != 0 ? i > 0 : i < blocks) widen(values != 0, blocks_ + i - values);
      }
    }
    shared_.q_ring.release(at);
    blocks_ += blocks;
    ++tiles_;
    return true;
  }

  /// Block `n` of all tiles.
  __device__ __forceinline__ void widen(bool values, unsigned n) {
    const auto at = position<Traits::kKeyStages>(n);
    wait(values ? &shared_.v_codes[at.stage] : &shared_.k_codes[at.stage], at.parity);
    widener_.widen(values ? shared_.v[at.stage] : shared_.k[at.stage]);
    __syncwarp();
    if (lane_ == 0) (values ? shared_.v_ring : shared_.k_ring).arrive(at);
  }

  typename Traits::Shared& shared_;
  const int lane_;
  const Widener<typename Traits::Item, Traits::kBlock, Traits::kConverterWarps, kAhead> widener_;
  unsigned tiles_ = 0;   // behind us
  unsigned blocks_ = 0;  // of those tiles
};

}  // namespace msa::cuda::sm90::attend
