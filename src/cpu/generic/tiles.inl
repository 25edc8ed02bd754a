// SPDX-License-Identifier: MIT
// Products of tiles, for the levels that have them (isa/vec_avx512_tiles.h): 16 rows of one side
// meet 16 columns of the other, in steps of 64 bytes along what is summed. At most four products of
// 16 x 16 grow at a time, so that each tile that is loaded is multiplied twice or more.

inline constexpr std::int64_t kTileRow = 64;  // bytes
inline constexpr std::int64_t kTileBytes = 16 * kTileRow;

/// f<0>() to f<n - 1>().
template <int n, class F>
MSA_INLINE void repeat(const F& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) { (f.template operator()<i>(), ...); }
  (std::make_integer_sequence<int, n>{});
}

/// 16 rows, `stride` bytes apart; what the next step multiplies lies `step` bytes on.
struct TileRows16 {
  const std::byte* data;
  std::int64_t stride;
  std::int64_t step;
};

template <bool kCodes, int kAcc, int kA, int kB>
MSA_INLINE void add_product() {
  if constexpr (kCodes) {
    Tiles::add_codes<kAcc, kA, kB>();
  } else {
    Tiles::add_pairs<kAcc, kA, kB>();
  }
}

/// Tile i * kCols + j += rows i times columns j: of pairs of bf16, or of codes. Columns are tiles
/// of words, one behind the other.
template <bool kCodes, int kRows, int kCols>
MSA_INLINE void multiply_tiles(const TileRows16 (&rows)[kRows],
                               const std::byte* const (&columns)[kCols], std::int64_t steps) {
  static_assert(kRows * kCols <= 4 && (kCols <= 2 || kRows == 1));
  constexpr int kA = 4, kB = 6;  // two registers of each side
  for (std::int64_t step = 0; step < steps; ++step) {
    const auto load_rows = [&]<int i>() {
      Tiles::load<kA + i % 2>(rows[i].data + step * rows[i].step, rows[i].stride);
    };
    const auto load_columns = [&]<int j>() {
      Tiles::load<kB + j % 2>(columns[j] + step * kTileBytes, kTileRow);
    };
    if constexpr (kCols <= 2) {
      repeat<kCols>(load_columns);
      repeat<kRows>([&]<int i>() {
        load_rows.template operator()<i>();
        repeat<kCols>([&]<int j>() { add_product<kCodes, i * kCols + j, kA + i % 2, kB + j>(); });
      });
    } else {
      load_rows.template operator()<0>();
      repeat<kCols>([&]<int j>() {
        load_columns.template operator()<j>();
        add_product<kCodes, j, kA, kB + j % 2>();
      });
    }
  }
}

/// Tile i * kCols + j begins at to + (i * 16 * kCols + j) * 16 words: [rows][kCols][16].
template <int kRows, int kCols>
MSA_INLINE void store_tiles(void* to) {
  repeat<kRows * kCols>([&]<int t>() {
    Tiles::store<t>(static_cast<std::byte*>(to) + (t / kCols * 16 * kCols + t % kCols) * kTileRow,
                    kCols * kTileRow);
  });
}
