// SPDX-License-Identifier: MIT
// Prefix sums over the threads of a CTA.
#pragma once

#include <cstdint>

#include "cuda/common/warp.cuh"

namespace msa::cuda::common::cta {

/// Sum of `value` over the threads before this one; `total` is that of all. Every thread of the CTA
/// calls it; it may be called again at once.
template <int kThreads>
__device__ __forceinline__ std::int64_t exclusive_sum(std::int64_t value, std::int64_t& total) {
  static_assert(kThreads % 32 == 0, "whole warps");
  constexpr int kWarps = kThreads / 32;
  __shared__ std::int64_t warp_sums[kWarps];
  const int lane = threadIdx.x & 31;
  const std::int64_t sum = warp::inclusive_sum(value, lane);
  if (lane == 31) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  std::int64_t before = 0;
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < static_cast<int>(threadIdx.x / 32)) before += warp_sums[w];
    total += warp_sums[w];
  }
  __syncthreads();
  return before + sum - value;
}

}  // namespace msa::cuda::common::cta
