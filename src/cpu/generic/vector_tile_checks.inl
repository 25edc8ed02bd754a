// SPDX-License-Identifier: MIT
// The products of tiles over arrays: see cpu/vector_checks.h. Included behind vector_checks.inl.

namespace checks {

/// acc [16][16] += rows [16] of 64 bytes times columns [16 words][16].
template <bool kCodes>
inline void multiply_tile(const void* rows, const void* columns, void* acc) {
  const Tiles tiles;
  Tiles::load<0>(acc, kTileRow);
  const TileRows16 a[1] = {{static_cast<const std::byte*>(rows), kTileRow, kTileBytes}};
  const std::byte* const b[1] = {static_cast<const std::byte*>(columns)};
  multiply_tiles<kCodes, 1, 1>(a, b, 1);
  store_tiles<1, 1>(acc);
}

constexpr VectorChecks tile_table() {
  VectorChecks t = table();
  add_pairs<TileProducts>(t);
  t.multiply_pairs = multiply_tile<false>;
  t.multiply_codes = multiply_tile<true>;
  return t;
}

}  // namespace checks
