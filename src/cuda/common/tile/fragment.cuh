// SPDX-License-Identifier: MIT
// Which item of a tile a thread holds. A wgmma accumulator of 64 rows: warp w of the warpgroup owns
// rows 16w .. 16w+15, a lane rows r and r + 8 of those and, of each group of 8 columns, two
// neighbours:
//   d[4 g + 0], d[4 g + 1]  row r,      columns 8 g + c, 8 g + c + 1
//   d[4 g + 2], d[4 g + 3]  row r + 8,  the same columns           with r = lane / 4, c = 2 (lane %
//   4)
// Packed pairs of one accumulator are the A fragments of the next product: a[2 g] = (d[4 g], d[4 g
// + 1]), a[2 g + 1] = (d[4 g + 2], d[4 g + 3]); 16 columns (two groups) are one k16 step. mma.sync
// m16n8 uses the same order.
#pragma once

#include "cuda/common/number.cuh"
#include "cuda/common/ptx/math.cuh"

namespace msa::cuda::common {

/// Row of d[0] in a warpgroup's 64 rows, from the thread's index in the warpgroup; d[2] lies 8 rows
/// below.
__device__ __forceinline__ int fragment_row(int thread) {
  return (thread >> 5) * 16 + ((thread & 31) >> 2);
}

/// Column of d[0] inside each group of 8 columns.
__device__ __forceinline__ int fragment_column(int thread) { return (thread & 3) * 2; }

/// Sets to -inf every item that hidden(half, column) names: half 0 is the row of d[0], half 1 that
/// of d[2].
template <int kItems, class Hidden>
__device__ __forceinline__ void mask_fragment(float (&d)[kItems], int thread,
                                              const Hidden& hidden) {
  const int first = fragment_column(thread);
#pragma unroll
  for (int x = 0; x < kItems; ++x) {
    if (hidden((x >> 1) & 1, (x >> 2) * 8 + first + (x & 1))) d[x] = kMinusInf;
  }
}

namespace quad {

/// Maximum over the four lanes that share a row; NaN loses against numbers.
__device__ __forceinline__ float max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

/// Maximum over the four lanes that share a row; NaN wins against numbers.
__device__ __forceinline__ float max_nan(float x) {
  x = ptx::max_nan(x, __shfl_xor_sync(kAllLanes, x, 1));
  return ptx::max_nan(x, __shfl_xor_sync(kAllLanes, x, 2));
}

__device__ __forceinline__ int max(int x) {
  x = ::max(x, __shfl_xor_sync(kAllLanes, x, 1));
  return ::max(x, __shfl_xor_sync(kAllLanes, x, 2));
}

__device__ __forceinline__ float sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

}  // namespace quad
}  // namespace msa::cuda::common
