// SPDX-License-Identifier: MIT
// Products of 16 rows by pairs of 8 columns: what one ldmatrix of four brings of the second factor.
#pragma once

#include "cuda/common/tile/swizzle.cuh"
#include "cuda/mma/ptx.cuh"

namespace msa::cuda::mma {

/// Columns 16 n and on of d += a * b.
template <class Item, int kItems>
__device__ __forceinline__ void multiply_columns(float (&d)[kItems], int n,
                                                 const std::uint32_t (&a)[4],
                                                 const std::uint32_t (&b)[4]) {
  ptx::mma_m16n8k16<Item>(reinterpret_cast<float(&)[4]>(d[8 * n]), a, b[0], b[1]);
  ptx::mma_m16n8k16<Item>(reinterpret_cast<float(&)[4]>(d[8 * n + 4]), a, b[2], b[3]);
}

/// d = 16 rows of a tile, from first_a on, times kItems / 4 rows of another, from first_b on,
/// transposed: both have kDim columns in swizzled panels of rows_a and rows_b rows.
template <class Item, int kDim, int kItems>
__device__ __forceinline__ void multiply_tiles(const std::uint8_t* a, int rows_a, int first_a,
                                               const std::uint8_t* b, int rows_b, int first_b,
                                               int lane, float (&d)[kItems]) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) d[i] = 0.0f;
  const std::uint32_t from =
      ptx::cvta_to_shared(a) + common::swizzled_chunk(first_a + lane % 16, lane / 16);
  const std::uint32_t to =
      ptx::cvta_to_shared(b) + common::swizzled_chunk(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    std::uint32_t left[4];
    ptx::ldmatrix_x4(left, (from ^ (k % 4 * 32)) + k / 4 * rows_a * 128);
#pragma unroll
    for (int n = 0; n < kItems / 8; ++n) {
      std::uint32_t right[4];
      ptx::ldmatrix_x4(right,
                       (to ^ (k % 4 * 32)) + k / 4 * rows_b * 128 + (first_b + 16 * n) * 128);
      multiply_columns<Item>(d, n, left, right);
    }
  }
}

/// 16 rows of a tile, from 16 k on, by columns 16 n and on, as a second factor. Rows are summed
/// over.
__device__ __forceinline__ void load_columns(std::uint32_t (&b)[4], const std::uint8_t* tile,
                                             int rows, int k, int n, int lane) {
  const std::uint32_t from =
      ptx::cvta_to_shared(tile) + common::swizzled_chunk(lane % 16, lane / 16);
  ptx::ldmatrix_x4_trans(b, (from ^ (n % 4 * 32)) + n / 4 * rows * 128 + k * 16 * 128);
}

}  // namespace msa::cuda::mma
