// SPDX-License-Identifier: MIT
// Where an item of a tile lies after the 128-byte swizzle: 16-byte chunk c of row r is stored at
// chunk c ^ (r % 8) of that row, so that the same chunk of eight rows lies in eight banks' reach.
// Tiles are panels of 64 columns of 16 bits, one after the other. Rows of 64 bytes, of codes of
// four bits, have a swizzle of their own.
#pragma once

namespace msa::cuda::common {

inline constexpr int kPanelRowBytes = 128;  // bytes of one swizzled row

/// Items of so many bits in one swizzled row.
constexpr int panel_items(int bits) { return kPanelRowBytes * 8 / bits; }
inline constexpr int kPanelItems = panel_items(16);  // of what is multiplied

/// Byte offset of 16-byte chunk `chunk` (0 to 7) of row `row` inside one panel.
__device__ __forceinline__ int swizzled_chunk(int row, int chunk) {
  return row * 128 + ((chunk ^ (row & 7)) << 4);
}

/// Byte offset of the 16-bit item (row, column) in a tile of `rows` rows and any number of panels.
__device__ __forceinline__ int swizzled_item(int row, int column, int rows) {
  return (column >> 6) * rows * 128 + swizzled_chunk(row, (column & 63) >> 3) + (column & 7) * 2;
}

inline constexpr int kPackedRowBytes = 64;  // of 128 codes
inline constexpr int kPackedChunks = 4;     // of 16 bytes in a row: two groups each

/// Byte offset of 16-byte chunk `chunk` (0 to 3) of row `row` after the 64-byte swizzle.
__device__ __forceinline__ int packed_chunk(int row, int chunk) {
  return row * kPackedRowBytes + ((chunk ^ (row >> 1 & 3)) << 4);
}

}  // namespace msa::cuda::common
