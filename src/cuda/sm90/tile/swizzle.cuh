// SPDX-License-Identifier: MIT
// The copy engine's 128-byte swizzle is that of common/tile; layout as in tile/descriptor.cuh. Rows
// of 64 bytes, of codes of four bits, have a swizzle of their own.
#pragma once

#include "cuda/common/tile/swizzle.cuh"

namespace msa::cuda::sm90 {

using common::swizzled_chunk;
using common::swizzled_item;

inline constexpr int kPackedRowBytes = 64;  // of 128 codes
inline constexpr int kPackedChunks = 4;     // of 16 bytes in a row: two groups each

/// Byte offset of 16-byte chunk `chunk` (0 to 3) of row `row` after the 64-byte swizzle.
__device__ __forceinline__ int packed_chunk(int row, int chunk) {
  return row * kPackedRowBytes + ((chunk ^ (row >> 1 & 3)) << 4);
}

}  // namespace msa::cuda::sm90
