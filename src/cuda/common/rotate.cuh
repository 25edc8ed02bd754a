// SPDX-License-Identifier: MIT
// The rotation of a filter (docs/numerics.md): passes over pairs of elements, the nearest first.
// Whoever deals elements out to lanes and registers gets the same bits, as long as the passes keep
// their order.
#pragma once

#include "cuda/common/number.cuh"

namespace msa::cuda::common {

/// A pass over pairs that lie in one lane.
template <int kHalf, int kItems>
__device__ __forceinline__ void rotate_held(float (&x)[kItems]) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if ((i & kHalf) != 0) continue;
    const float low = x[i];
    const float high = x[i + kHalf];
    x[i] = __fadd_rn(low, high);
    x[i + kHalf] = __fsub_rn(low, high);
  }
}

/// A pass over pairs of lanes that lie `half` apart; `lanes` call it.
template <int kItems>
__device__ __forceinline__ void rotate_lanes(float (&x)[kItems], int half,
                                             unsigned lanes = kAllLanes) {
  const bool high = (threadIdx.x & half) != 0;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const float other = __shfl_xor_sync(lanes, x[i], half);
    x[i] = high ? __fsub_rn(other, x[i]) : __fadd_rn(x[i], other);
  }
}

}  // namespace msa::cuda::common
