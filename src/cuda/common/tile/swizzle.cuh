// SPDX-License-Identifier: MIT
// Where an item of a tile lies after the 128-byte swizzle: 16-byte chunk c of row r is stored at
// chunk c ^ (r % 8) of that row, so that the same chunk of eight rows lies in eight banks' reach.
// Tiles are panels of 64 columns of 16 bits, one after the other.
#pragma once

namespace msa::cuda::common {

/// Byte offset of 16-byte chunk `chunk` (0 to 7) of row `row` inside one panel.
__device__ __forceinline__ int swizzled_chunk(int row, int chunk) {
  return row * 128 + ((chunk ^ (row & 7)) << 4);
}

/// Byte offset of the 16-bit item (row, column) in a tile of `rows` rows and any number of panels.
__device__ __forceinline__ int swizzled_item(int row, int column, int rows) {
  return (column >> 6) * rows * 128 + swizzled_chunk(row, (column & 63) >> 3) + (column & 7) * 2;
}

}  // namespace msa::cuda::common
