// SPDX-License-Identifier: MIT
// What all 32 lanes of a warp call together.
#pragma once

#include "cuda/common/number.cuh"

namespace msa::cuda::common {

__device__ __forceinline__ unsigned lanes_below(int lane) { return (1u << lane) - 1; }

namespace warp {

/// Of the CTA's warps, as a number that the compiler knows all lanes to share.
__device__ __forceinline__ int number() {
  return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x), 0) / 32;
}

__device__ __forceinline__ bool any(bool x) { return __any_sync(kAllLanes, x) != 0; }

/// NaN loses against numbers.
__device__ __forceinline__ float max(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

template <class T>
__device__ __forceinline__ T sum(T x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

/// Sum over the lanes up to this one.
template <class T>
__device__ __forceinline__ T inclusive_sum(T x, int lane) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T below = __shfl_up_sync(kAllLanes, x, step);
    if (lane >= step) x += below;
  }
  return x;
}

/// Calls visit(value, lanes) for every value that lanes of `lanes` have: which have it, as bits.
template <class T, class Visit>
__device__ __forceinline__ void for_each_alike(T value, unsigned lanes, const Visit& visit) {
#pragma unroll 1
  for (unsigned left = lanes; left != 0;) {
    const T first = __shfl_sync(kAllLanes, value, __ffs(static_cast<int>(left)) - 1);
    const unsigned alike = __ballot_sync(kAllLanes, value == first) & left;
    visit(first, alike);
    left &= ~alike;
  }
}

}  // namespace warp
}  // namespace msa::cuda::common
