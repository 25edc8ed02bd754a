// SPDX-License-Identifier: MIT
// Products of 16 rows by pairs of 8 columns: what one ldmatrix of four brings of the second factor.
#pragma once

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

}  // namespace msa::cuda::mma
