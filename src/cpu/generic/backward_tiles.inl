// SPDX-License-Identifier: MIT
// The products of gradients by tiles of bf16 pairs (docs/kernels/cpu-backward.md), for the levels
// that have them. Included behind tiles.inl and attend.inl. What is stored as bf16 enters as it is;
// weights and gradients of scores, which are fp32, as sums of two bfloats, a product each.

namespace backward_tiles {

inline constexpr std::int64_t kPairs = kTileRow / 4;  // words of a row of a tile
inline constexpr std::int64_t kSteps = 2 * kPairs;    // what a tile sums up
static_assert(kLanes == kPairs);

alignas(64) inline constexpr std::uint16_t kNothing[256] = {};

MSA_PIECE void pack_keys(const std::uint16_t* from, std::int64_t row, std::int64_t dim,
                         std::int64_t keys, std::int64_t padded, const PairedKeys& to) {
  const std::int64_t wide = round_up(dim, kSteps);
  for (std::int64_t key = 0; key < padded; ++key) {
    std::uint16_t* const halves = to.halves + key * wide;
    std::memcpy(halves, key < keys ? from + key * row : kNothing,
                static_cast<std::size_t>(dim) * sizeof *halves);
    if (dim < wide) std::memset(halves + dim, 0, sizeof(std::uint16_t) * kPairs);
  }
  if (to.strips == nullptr) return;
  for (std::int64_t key = 0; key < padded; key += 2) {
    Bf16Products::interleave(to.halves + key * wide, to.halves + (key + 1) * wide, dim,
                             to.strips + key / 2 * kPairs, padded / 2 * kPairs);
  }
}

MSA_PIECE void pack_rows(const std::uint16_t* const* from, std::int64_t rows, std::int64_t dim,
                         const PairedRows& to) {
  const std::int64_t wide = round_up(dim, kSteps), words = wide / 2;
  alignas(64) Bits halves[kLanes * 128];  // 16 rows of up to 256 dims
  for (std::int64_t first = 0; first < rows; first += kLanes) {
    for (std::int64_t i = 0; i < kLanes; ++i) {
      Bits* const row = halves + i * words;
      std::memcpy(row, first + i < rows ? from[first + i] : kNothing,
                  static_cast<std::size_t>(dim) * sizeof(std::uint16_t));
      if (dim < wide) std::memset(row + dim / 2, 0, sizeof(std::uint16_t) * kPairs);
    }
    for (std::int64_t d = 0; d < words; d += kLanes)
      transpose_words(halves + d, words, to.lanes + (first * words) + d * kLanes, kLanes);
  }
  if (to.strips == nullptr) return;
  for (std::int64_t first = 0; first < rows; first += 2 * kLanes) {
    for (std::int64_t i = first; i < first + kLanes; ++i) {
      Bf16Products::interleave(
          i < rows ? from[i] : kNothing, i + kLanes < rows ? from[i + kLanes] : kNothing, dim,
          to.strips + (first / 2 + i - first) * kPairs, kBackwardRows / 2 * kPairs);
    }
  }
}

/// Sums of kRows x kCols tiles that begin row_words words apart and 16 dims or `column` apart.
template <int kRows, int kCols, class F>
MSA_INLINE void for_sums(float* to, std::int64_t row, std::int64_t column, const F& f) {
  repeat<kRows * kCols>(
      [&]<int t>() { f.template operator()<t>(to + t / kCols * row + t % kCols * column); });
}

template <int kRows, int kCols>
MSA_INLINE void score_tile(const PairScores& s, std::int64_t key, std::int64_t column) {
  const std::int64_t wide = round_up(s.dim, kSteps);
  TileRows16 keys[kRows];
  const std::byte* rows[kCols];
  for (int i = 0; i < kRows; ++i) {
    keys[i] = {reinterpret_cast<const std::byte*>(s.keys + (key + 16 * i) * wide), 2 * wide,
               kTileRow};
  }
  for (int j = 0; j < kCols; ++j)
    rows[j] = reinterpret_cast<const std::byte*>(s.rows + (column + j) * kLanes * wide / 2);
  repeat<kRows * kCols>([]<int t>() { Tiles::clear<t>(); });
  multiply_tiles<false, kRows, kCols>(keys, rows, wide / kSteps);
  for_sums<kRows, kCols>(s.to + (column * s.padded + key) * kLanes, 16 * kLanes, s.padded * kLanes,
                         [&]<int t>(float* to) { Tiles::store<t>(to, kTileRow); });
}

MSA_PIECE void score(const PairScores& s) {
  const Tiles tiles;
  for (std::int64_t key = 0; key < s.seen; key += kSteps) {
    s.columns == 2 ? score_tile<2, 2>(s, key, 0) : score_tile<2, 1>(s, key, 0);
  }
}

/// The two halves of each weight: what is left of it in `low`.
MSA_INLINE void split(Vec even, Vec odd, std::uint32_t* high, std::uint32_t* low) {
  IVec words[2];
  Bf16Products::split(even, odd, words);
  istore(high, words[0]);
  istore(low, words[1]);
}

/// Sums of up to four tiles: both halves of weights times strips.
template <int kRows, int kCols>
MSA_INLINE void add_tiles(const PairSums& s, const std::uint32_t* parts, std::int64_t part_rows,
                          std::int64_t part_step, std::int64_t strip, std::int64_t steps,
                          std::int64_t d) {
  const std::byte* columns[kCols];
  for (int j = 0; j < kCols; ++j)
    columns[j] = reinterpret_cast<const std::byte*>(s.strips + (d / 16 + j) * strip);
  for (int half = 0; half < 2; ++half) {
    TileRows16 rows[kRows];
    for (int i = 0; i < kRows; ++i) {
      rows[i] = {reinterpret_cast<const std::byte*>(parts + half * s.part + i * part_rows),
                 kTileRow, part_step};
    }
    multiply_tiles<false, kRows, kCols>(rows, columns, steps);
  }
}

template <int kRows, int kCols>
MSA_INLINE void query_tile(const PairSums& s, std::int64_t column, std::int64_t steps,
                           std::int64_t d) {
  const std::int64_t part_column = s.padded / 2 * kPairs;
  repeat<kRows * kCols>([]<int t>() { Tiles::clear<t>(); });
  add_tiles<kRows, kCols>(s, s.parts + column * part_column, part_column, kTileBytes,
                          s.padded / 2 * kPairs, steps, d);
  for_sums<kRows, kCols>(s.to + column * kLanes * s.dim + d, kLanes * s.dim, kLanes,
                         [&]<int t>(float* to) { Tiles::store<t>(to, 4 * s.dim); });
}

template <int kRows>
MSA_INLINE void query_tiles(const PairSums& s, std::int64_t column, std::int64_t steps) {
  for (std::int64_t d = 0; d < s.dim; d += 2 * kLanes) {
    d + kLanes < s.dim ? query_tile<kRows, 2>(s, column, steps, d)
                       : query_tile<kRows, 1>(s, column, steps, d);
  }
}

/// [rows][dim] = weights times keys. Weights are turned to [rows][32 keys].
MSA_PIECE void queries(const PairSums& s) {
  const std::int64_t steps = (s.keys + kSteps - 1) / kSteps;
  const std::int64_t columns = (s.rows + kLanes - 1) / kLanes;
  for (std::int64_t column = 0; column < columns; ++column) {
    const float* const weights = s.weights + column * s.padded * kLanes;
    const auto weight = [&](std::int64_t key) {
      return key < s.keys ? load(weights + key * kLanes) : zero();
    };
    for (std::int64_t step = 0; step < steps; ++step) {
      std::uint32_t* const high = s.parts + (column * s.padded / 2 + step * kPairs) * kPairs;
      std::uint32_t* const low = high + s.part;
      for (std::int64_t pair = 0; pair < kPairs; ++pair) {
        const std::int64_t key = step * kSteps + 2 * pair;
        split(weight(key), weight(key + 1), high + pair * kPairs, low + pair * kPairs);
      }
      transpose_words(high, kPairs, high, kPairs);
      transpose_words(low, kPairs, low, kPairs);
    }
  }
  const Tiles tiles;
  std::int64_t column = 0;
  for (; column + 2 <= columns; column += 2) query_tiles<2>(s, column, steps);
  if (column < columns) query_tiles<1>(s, column, steps);
}

template <int kRows, int kCols>
MSA_INLINE void key_tile(const PairSums& s, std::int64_t key, std::int64_t steps, std::int64_t d) {
  float* const sums = s.to + key * s.dim + d;
  for_sums<kRows, kCols>(sums, kLanes * s.dim, kLanes,
                         [&]<int t>(float* to) { Tiles::load<t>(to, 4 * s.dim); });
  add_tiles<kRows, kCols>(s, s.parts + key * kPairs, kTileBytes / 4, s.padded * kTileRow,
                          kBackwardRows / 2 * kPairs, steps, d);
  for_sums<kRows, kCols>(sums, kLanes * s.dim, kLanes,
                         [&]<int t>(float* to) { Tiles::store<t>(to, 4 * s.dim); });
}

template <int kRows>
MSA_INLINE void key_tiles(const PairSums& s, std::int64_t key, std::int64_t steps) {
  for (std::int64_t d = 0; d < s.dim; d += 2 * kLanes) {
    d + kLanes < s.dim ? key_tile<kRows, 2>(s, key, steps, d)
                       : key_tile<kRows, 1>(s, key, steps, d);
  }
}

/// [keys][dim] += weights times rows. A word holds a key's weights of two rows, 16 apart.
MSA_PIECE void keys(const PairSums& s) {
  alignas(64) static constexpr std::int32_t kLane[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                         8, 9, 10, 11, 12, 13, 14, 15};
  const std::int64_t steps = (s.rows + kSteps - 1) / kSteps;
  for (std::int64_t step = 0; step < steps; ++step) {
    const std::int64_t first = step * kSteps;
    const auto live = [&](std::int64_t row) {
      return igreater(iset1(static_cast<std::int32_t>(s.rows - row)), iload(kLane));
    };
    const Mask even = live(first), odd = live(first + kLanes);
    const float* const weights = s.weights + first * s.padded;
    const float* const others = first + kLanes < s.rows ? weights + s.padded * kLanes : weights;
    std::uint32_t* const high = s.parts + step * s.padded * kPairs;
    for (std::int64_t key = 0; key < s.keys; ++key) {
      // Rows behind the last may weigh anything.
      split(select(even, load(weights + key * kLanes), zero()),
            select(odd, load(others + key * kLanes), zero()), high + key * kPairs,
            high + s.part + key * kPairs);
    }
  }
  const Tiles tiles;
  std::int64_t key = 0;
  for (; key + 32 <= s.keys; key += 32) key_tiles<2>(s, key, steps);
  if (key < s.keys) key_tiles<1>(s, key, steps);
}

inline constexpr GradientTiles kProducts = {.pack_keys = pack_keys,
                                            .pack_rows = pack_rows,
                                            .score = score,
                                            .queries = queries,
                                            .keys = keys};

}  // namespace backward_tiles
