// SPDX-License-Identifier: MIT
// The 8-bit filter of a tile: integer products of codes, their maximum over keys that share bounds,
// and from it bounds of the block's score; then the scores of those blocks that may be chosen. Two
// ways, as in score.inl. Where rows are in the lanes, only those runs of 16 keys are scored that
// may hold the block's best key. Included behind score.inl.

namespace selection {

using CodeProducts = ProductsOfCodes;

/// No key of the page is seen.
inline constexpr std::int32_t kNoKey = std::numeric_limits<std::int32_t>::min();
inline constexpr float kHighest = std::numeric_limits<float>::infinity();
inline constexpr int kMostRuns = 256 / kKeyRun;        // in a block of at most 256 keys
inline constexpr int kMostPieces = 2 * kMostRuns + 1;  // runs cut where bounds change

/// The bounds that the keys of a block have, in their order.
struct BlockBounds {
  PageBound pieces[kMostPieces];
  int count = 0;
};

/// `by_run`: a piece lies in one run.
MSA_INLINE_PIECE void read_bounds(const ScoreTile& tile, const FilterKeys& keys,
                                  const BlockKeys& block, bool by_run, BlockBounds& bounds) {
  bounds.count = 0;
  for (std::int64_t j = 0; j < block.size;) {
    const PageBound page =
        page_bound(keys.bounds_of(block.begin + j), keys.item_stride, tile.dim, keys.rotated);
    const std::int64_t end =
        std::min(keys.end_of_bounds(block.begin + j) - block.begin, block.size);
    while (j < end) {
      PageBound& piece = bounds.pieces[bounds.count++];
      piece = page;
      piece.begin = j;
      j = by_run ? std::min(end, (j / kKeyRun + 1) * kKeyRun) : end;
      piece.end = j;
    }
  }
}

/// What the bounds of a page need of the rows in the lanes.
struct LaneRows {
  Vec scale, norm, error;
};

MSA_INLINE LaneRows load_rows(const FilterRows& rows, std::int64_t row) {
  return {load(rows.scale + row), load(rows.norm + row), load(rows.error + row)};
}

/// Widens the bounds of a block by those of keys whose largest product is `best`.
MSA_INLINE void include_keys(const LaneRows& rows, const PageBound& page, IVec best, Vec& lower,
                             Vec& upper) {
  const Vec middle = mul(to_float(best), mul(rows.scale, set1(page.scale)));
  const Vec width =
      fma(rows.norm, set1(page.error), fma(rows.error, set1(page.norm), set1(page.floor)));
  // Not where it is NaN, nor where scales overflow, which codes of 0 may have: 0 x infinity.
  const Mask known = greater(set1(kWidest), fma(middle, zero(), width));
  const Mask seen = igreater(best, iset1(kNoKey));
  const Vec low = select(known, sub(middle, width), set1(kLowest));
  const Vec high = select(known, add(middle, width), set1(kHighest));
  lower = max(select(seen, low, set1(kLowest)), lower);
  upper = max(select(seen, high, set1(kLowest)), upper);
}

// ---- rows in the lanes ----

/// Codes of the queries as [column][word][lane].
inline void pack_codes(const ScoreTile& tile, const FilterRows& rows, const TileBuffers& buffers) {
  using P = CodeProducts;
  const std::int64_t words = tile.dim / P::kPack;
  auto* packed = reinterpret_cast<std::uint32_t*>(buffers.q);
  for (std::int64_t r = 0; r < core::ceil_div(tile.num_rows, kLanes) * kLanes; ++r) {
    const std::int8_t* codes = rows.codes + r * rows.code_stride;
    std::uint32_t* lane = packed + r / kLanes * words * kLanes + r % kLanes;
    for (std::int64_t d = 0; d < tile.dim; d += kLanes * P::kPack) {
      alignas(64) std::uint32_t word[kLanes];
      istore(word, P::shifted(P::codes(codes + d, tile.dim - d)));
      const std::int64_t count = std::min<std::int64_t>(words - d / P::kPack, kLanes);
      for (std::int64_t w = 0; w < count; ++w) lane[(d / P::kPack + w) * kLanes] = word[w];
    }
  }
}

/// Fills buffers.keys with the operand words of each key's codes, and buffers.starts.
inline void stage_codes(const ScoreTile& tile, const IndexKeys& keys, const BlockKeys& block,
                        const TileBuffers& buffers, Lookahead& ahead) {
  using P = CodeProducts;
  const std::int64_t bytes = tile.dim / P::kPack * 4;
  for (std::int64_t j = 0; j < block.size; j += kKeyRun) {
    const std::byte* run = keys.key(block.begin + j);
    ahead.start_run(block.begin + j);
    const std::int64_t end = std::min(j + kKeyRun, block.size);
    for (std::int64_t i = j; i < end; ++i, run += keys.token_stride) {
      const auto* codes = reinterpret_cast<const std::int8_t*>(run);
      ahead.ask(i - j);
      if constexpr (P::kPack == 4) {
        buffers.keys[i] = run;
      } else {
        std::byte* words = buffers.k + i * bytes;
        for (std::int64_t d = 0; d < tile.dim; d += kLanes * P::kPack)
          istore(words + d * 2, P::codes(codes + d, tile.dim - d));
        buffers.keys[i] = words;
      }
      buffers.starts[i] = -P::kShift * P::sum(codes, tile.dim);
    }
  }
}

/// Raises `best` to the products of kTile keys from `key` on, the last of which is `last`.
template <int kColumns, bool kMasked>
MSA_INLINE void multiply_keys(const std::uint32_t* q, std::int64_t words,
                              const TileBuffers& buffers, std::int64_t key, std::int64_t last,
                              const std::int32_t* limits, IVec* best) {
  using P = CodeProducts;
  IVec acc[kTile][kColumns];
  const std::byte* k[kTile];
  std::int32_t at[kTile];
  for (int m = 0; m < kTile; ++m) {
    const std::int64_t i = std::min(key + m, last);
    at[m] = static_cast<std::int32_t>(i);
    k[m] = buffers.keys[i];
    for (int c = 0; c < kColumns; ++c) acc[m][c] = iset1(buffers.starts[i]);
  }
  for (std::int64_t w = 0; w < words; ++w) {
    IVec operand[kColumns];
    for (int c = 0; c < kColumns; ++c) operand[c] = iload(q + (c * words + w) * kLanes);
    for (int m = 0; m < kTile; ++m) {
      const IVec value = P::broadcast(k[m] + w * 4);
      for (int c = 0; c < kColumns; ++c) acc[m][c] = P::step(acc[m][c], operand[c], value);
    }
  }
  for (int c = 0; c < kColumns; ++c) {
    for (int m = 0; m < kTile; ++m) {
      IVec product = acc[m][c];
      if constexpr (kMasked) {
        product =
            iselect(igreater(iload(limits + c * kLanes), iset1(at[m])), product, iset1(kNoKey));
      }
      best[c] = imax(best[c], product);
    }
  }
}

/// Puts x into each lane's list of its largest numbers, which lie in order.
MSA_INLINE_PIECE void insert_each(float* lists, std::int64_t count, Vec x) {
  if (bits(greater(x, load(lists + (count - 1) * kLanes))) == 0) return;
  for (std::int64_t i = 0; i < count; ++i) {
    const Vec held = load(lists + i * kLanes);
    store(lists + i * kLanes, max(held, x));
    x = min(held, x);
  }
}

/// Bounds of one block's scores, gathered piece by piece.
template <int kColumns>
struct ColumnBounds {
  Vec lower[kColumns], upper[kMostRuns][kColumns];

  ColumnBounds() {
    for (int c = 0; c < kColumns; ++c) lower[c] = set1(kLowest);
  }
  /// A piece whose largest products are `best`; `row` is that of the first lane.
  MSA_INLINE void include(const FilterRows& filter, std::int64_t row, const PageBound& piece,
                          const IVec (&best)[kColumns]) {
    Vec* run = upper[piece.begin / kKeyRun];
    for (int c = 0; c < kColumns; ++c) {
      if (piece.begin % kKeyRun == 0) run[c] = set1(kLowest);
      include_keys(load_rows(filter, row + c * kLanes), piece, best[c], lower[c], run[c]);
    }
  }
  /// Writes what the second pass needs, and puts lower bounds into the rows' lists.
  MSA_INLINE void keep(const FilterRows& filter, std::int64_t block, const BlockKeys& keys,
                       std::int64_t row, std::int64_t first) {
    const auto runs = static_cast<int>(core::ceil_div(keys.size, kKeyRun));
    for (int c = 0; c < kColumns; ++c) {
      Vec highest = upper[0][c];
      IVec held = iset1(0);  // runs whose upper bound reaches the block's lower one
      for (int n = 0; n < runs; ++n) {
        const Vec high = upper[n][c];
        highest = max(highest, high);
        const Mask reaches = either(greater(high, lower[c]), equal(high, lower[c]));
        held = ior(held, iselect(reaches, iset1(1 << n), iset1(0)));
      }
      const std::int64_t at = block * filter.stride + row + c * kLanes;
      store(filter.upper + at, highest);
      istore(filter.runs + at, held);
      if (first > row + c * kLanes) {  // rows in front need no such block
        alignas(64) float low[kLanes];
        store(low, lower[c]);
        std::fill_n(low, std::min<std::int64_t>(first - row - c * kLanes, kLanes), kLowest);
        lower[c] = load(low);
      }
      insert_each(filter.lower + (row + c * kLanes) * filter.topk, filter.topk, lower[c]);
    }
  }
};

/// One block against kColumns columns from `column` on.
template <int kColumns>
void bound_columns(const BlockSink& sink, const FilterRows& filter, const TileBuffers& buffers,
                   std::int64_t block, const BlockKeys& keys, const BlockBounds& bounds,
                   std::int64_t column, std::int64_t first) {
  const std::int64_t words = sink.tile.dim / CodeProducts::kPack;
  const auto* q = reinterpret_cast<const std::uint32_t*>(buffers.q) + column * words * kLanes;
  const std::int64_t row = column * kLanes;
  const bool masked = sink.rows.visible[std::max(first, row)] < keys.begin + keys.size;
  alignas(64) std::int32_t limits[kColumns * kLanes];
  for (int i = 0; masked && i < kColumns * kLanes; ++i) {
    limits[i] = static_cast<std::int32_t>(
        std::clamp<std::int64_t>(sink.rows.visible[row + i] - keys.begin, 0, keys.size));
  }
  ColumnBounds<kColumns> found;
  for (int n = 0; n < bounds.count; ++n) {
    const PageBound& piece = bounds.pieces[n];
    IVec best[kColumns];
    for (int c = 0; c < kColumns; ++c) best[c] = iset1(kNoKey);
    for (std::int64_t j = piece.begin; j < piece.end; j += kTile) {
      if (masked) {
        multiply_keys<kColumns, true>(q, words, buffers, j, piece.end - 1, limits, best);
      } else {
        multiply_keys<kColumns, false>(q, words, buffers, j, piece.end - 1, nullptr, best);
      }
    }
    found.include(filter, row, piece, best);
  }
  found.keep(filter, block, keys, row, first);
}

/// The largest lower bounds become the rows' candidates.
inline void list_lower(const ScoreTile& tile, const TileRows& rows, const FilterRows& filter) {
  for (std::int64_t r = 0; r < tile.num_rows; ++r) {
    if (rows.threshold[r] == kTakeNone) continue;
    const float* lower = filter.lower + r / kLanes * kLanes * filter.topk + r % kLanes;
    Candidate* list = rows.lists + r * rows.list_stride;
    rows.count[r] = rows.room[r];
    for (std::int32_t i = 0; i < rows.room[r]; ++i) list[i] = make_candidate(lower[i * kLanes], i);
  }
}

inline void bound_many_rows(const BlockSink& sink, const FilterKeys& keys, const FilterRows& filter,
                            const TileBuffers& buffers) {
  const ScoreTile& tile = sink.tile;
  const std::int64_t columns = core::ceil_div(tile.num_rows, kLanes);
  Lookahead ahead{keys.codes, sink.rows.visible[tile.num_rows - 1], tile.dim};
  pack_codes(tile, filter, buffers);
  std::fill_n(filter.lower, columns * kLanes * filter.topk, kLowest);
  std::int64_t first = 0;
  for (std::int64_t block = tile.blocks.begin; block < tile.blocks.end; ++block) {
    while (first < tile.num_rows && sink.rows.end[first] <= block) ++first;
    if (first == tile.num_rows) break;
    const BlockKeys seen = keys_of_block(tile, sink.rows, block);
    BlockBounds bounds;
    read_bounds(tile, keys, seen, true, bounds);
    stage_codes(tile, keys.codes, seen, buffers, ahead);
    std::int64_t column = first / kLanes;
    for (; column + kScoreColumns <= columns; column += kScoreColumns)
      bound_columns<kScoreColumns>(sink, filter, buffers, block, seen, bounds, column, first);
    for (; column < columns; ++column)
      bound_columns<1>(sink, filter, buffers, block, seen, bounds, column, first);
  }
  list_lower(tile, sink.rows, filter);
}

// ---- head dim in the lanes ----

/// Products of kLanes / kRows keys and kRows rows: lane = key * kRows + row.
template <int kRows>
MSA_INLINE IVec multiply_run(const FilterRows& filter, std::int64_t dim,
                             const std::byte* const* keys) {
  using P = CodeProducts;
  constexpr int kKeys = kLanes / kRows;
  constexpr std::int64_t kStep = std::int64_t{kLanes} * P::kPack;
  IVec acc[kLanes];
  for (int i = 0; i < kLanes; ++i) acc[i] = iset1(0);
  for (std::int64_t d = 0; d < dim; d += kStep) {
    IVec key[kKeys];
    for (int k = 0; k < kKeys; ++k)
      key[k] = P::shifted(P::codes(reinterpret_cast<const std::int8_t*>(keys[k]) + d, dim - d));
    for (int r = 0; r < kRows; ++r) {
      const IVec row = P::codes(filter.codes + r * filter.code_stride + d, kStep);
      for (int k = 0; k < kKeys; ++k) acc[k * kRows + r] = P::step(acc[k * kRows + r], key[k], row);
    }
  }
  return isum_each(acc);
}

/// What lanes need of their rows; lane = key * kRows + row.
template <int kRows>
struct FewRows {
  LaneRows rows;
  IVec shift;                                // what shifted codes add to the products
  alignas(64) std::int64_t visible[kLanes];  // keys that the row sees

  FewRows(const BlockSink& sink, const FilterRows& filter) {
    using P = CodeProducts;
    alignas(64) float scale[kLanes], norm[kLanes], error[kLanes];
    alignas(64) std::int32_t shifts[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int r = i % kRows;
      scale[i] = filter.scale[r];
      norm[i] = filter.norm[r];
      error[i] = filter.error[r];
      shifts[i] = P::kShift * P::sum(filter.codes + r * filter.code_stride, sink.tile.dim);
      visible[i] = r < sink.tile.num_rows ? sink.rows.visible[r] : 0;
    }
    rows = {load(scale), load(norm), load(error)};
    shift = iload(shifts);
  }
};

template <int kRows>
void bound_few_rows(const BlockSink& sink, const FilterKeys& keys, const FilterRows& filter) {
  constexpr int kKeys = kLanes / kRows;
  const ScoreTile& tile = sink.tile;
  const FewRows<kRows> few(sink, filter);
  Lookahead ahead{keys.codes, sink.rows.visible[tile.num_rows - 1], tile.dim};
  std::int64_t first = 0;
  for (std::int64_t block = tile.blocks.begin; block < tile.blocks.end; ++block) {
    while (first < tile.num_rows && sink.rows.end[first] <= block) ++first;
    if (first == tile.num_rows) return;
    const BlockKeys seen = keys_of_block(tile, sink.rows, block);
    const bool masked = sink.rows.visible[first] < seen.begin + seen.size;
    alignas(64) std::int32_t limits[kLanes];
    for (int i = 0; masked && i < kLanes; ++i) {
      const std::int64_t sees = std::clamp<std::int64_t>(few.visible[i] - seen.begin, 0, seen.size);
      limits[i] = static_cast<std::int32_t>(sees) - i / kRows;
    }
    BlockBounds bounds;
    read_bounds(tile, keys, seen, false, bounds);
    Vec lower = set1(kLowest), upper = set1(kLowest);
    for (int n = 0; n < bounds.count; ++n) {
      const PageBound& page = bounds.pieces[n];
      const std::byte* run = keys.codes.key(seen.begin + page.begin);
      IVec best = iset1(kNoKey);
      for (std::int64_t j = page.begin; j < page.end; j += kKeys) {
        if ((j - page.begin) % kKeyRun == 0) ahead.start_run(seen.begin + j);
        const std::byte* key[kKeys];
        for (int k = 0; k < kKeys; ++k) {
          const std::int64_t i = std::min(j + k, page.end - 1) - page.begin;
          key[k] = run + i * keys.codes.token_stride;
          ahead.ask((j - page.begin + k) % kKeyRun);
        }
        IVec product = isub(multiply_run<kRows>(filter, tile.dim, key), few.shift);
        if (masked) {
          product = iselect(igreater(iload(limits), iset1(static_cast<std::int32_t>(j))), product,
                            iset1(kNoKey));
        }
        best = imax(best, product);
      }
      include_keys(few.rows, page, best, lower, upper);
    }
    alignas(64) float low[kLanes], high[kLanes];
    store(low, lower);
    store(high, upper);
    for (int i = kRows; i < kLanes; ++i) {
      low[i % kRows] = std::max(low[i % kRows], low[i]);
      high[i % kRows] = std::max(high[i % kRows], high[i]);
      low[i] = kLowest;
    }
    std::copy_n(high, kRows, filter.upper + block * filter.stride);
    sink.take(block, 0, first, load(low));
  }
}

inline void bound_tile(const ScoreTile& tile, const FilterKeys& keys, const TileRows& rows,
                       const FilterRows& filter, const TileBuffers& buffers) {
  const ScoreTarget lists;
  const BlockSink sink{tile, rows, lists};
  // As in the second pass: the last tile of many rows may hold few.
  if (!tile.few_rows) return bound_many_rows(sink, keys, filter, buffers);
  if (tile.num_rows <= 1) return bound_few_rows<1>(sink, keys, filter);
  if (tile.num_rows <= 2) return bound_few_rows<2>(sink, keys, filter);
  if (tile.num_rows <= 4) return bound_few_rows<4>(sink, keys, filter);
  bound_few_rows<8>(sink, keys, filter);
}

// ---- blocks that may be chosen ----

/// Rows from `first` on that want the block.
MSA_INLINE_PIECE std::int64_t rows_that_want(const ScoreTile& tile, const FilterRows& filter,
                                             std::int64_t block, std::int64_t first,
                                             std::uint16_t* list) {
  const float* upper = filter.upper + block * filter.stride;
  std::int64_t count = 0;
  for (std::int64_t row = first / kLanes * kLanes; row < tile.num_rows; row += kLanes) {
    const Vec high = load(upper + row), least = load(filter.least + row);
    unsigned wants = bits(either(greater(high, least), equal(high, least)));
    const std::int64_t skip = std::max<std::int64_t>(first - row, 0);
    wants = wants >> skip << skip;
    for (; wants != 0; wants &= wants - 1) {
      const std::int64_t r = row + std::countr_zero(wants);
      if (r >= tile.num_rows) break;
      list[count++] = static_cast<std::uint16_t>(r);
      ++filter.wanted[r];
    }
  }
  return count;
}

/// buffers.k: up to kLanes keys from number `key` of a block on as [word][key], the last one again
/// where there are fewer.
template <class K>
void transpose_keys(const ScoreTile& tile, const BlockKeys& block, std::int64_t key,
                    const TileBuffers& buffers) {
  const std::int64_t words = tile.dim / K::P::kPack;
  auto* rows = reinterpret_cast<Bits*>(buffers.rows);
  auto* packed = reinterpret_cast<Bits*>(buffers.k);
  const std::byte* run = tile.keys.key(block.begin + key);
  const bool words_apart = (reinterpret_cast<std::uintptr_t>(run) |
                            static_cast<std::uintptr_t>(tile.keys.token_stride)) %
                               sizeof(Bits) ==
                           0;
  if (K::kDirect && words_apart && words % kLanes == 0 && key + kLanes <= block.size) {
    for (std::int64_t w = 0; w < words; w += kLanes) {
      transpose_words(reinterpret_cast<const Bits*>(run) + w,
                      tile.keys.token_stride / static_cast<std::int64_t>(sizeof(Bits)),
                      packed + w * kLanes, kLanes);
    }
    return;
  }
  for (std::int64_t i = 0; i < kLanes; ++i) {
    const std::int64_t at = std::min(i, block.size - key - 1);
    pack_row<K>(run + at * tile.keys.token_stride, tile.dim,
                reinterpret_cast<std::byte*>(rows + i * words));
  }
  std::int64_t w = 0;
  for (; w + kLanes <= words; w += kLanes)
    transpose_words(rows + w, words, packed + w * kLanes, kLanes);
  for (; w < words; ++w) {
    for (std::int64_t i = 0; i < kLanes; ++i) packed[w * kLanes + i] = rows[i * words + w];
  }
}

/// Raises `best` of kRows rows to their scores of the transposed keys, of which row i takes the
/// first limits[i].
template <class P, int kRows>
MSA_INLINE void score_across(const ScoreTile& tile, const TileBuffers& buffers,
                             const std::uint16_t* rows, const std::int32_t* limits, float* best) {
  const std::int64_t words = tile.dim / P::kPack;
  alignas(64) static constexpr auto kOrder = [] {
    std::array<std::int32_t, kLanes> order{};
    for (int i = 0; i < kLanes; ++i) order[static_cast<std::size_t>(i)] = i;
    return order;
  }();
  const std::byte* q[kRows];
  Vec acc[kRows];
  for (int i = 0; i < kRows; ++i) {
    q[i] = buffers.q + rows[i] * words * 4;
    acc[i] = zero();
  }
  const auto* lanes = reinterpret_cast<const typename P::Word*>(buffers.k);
  for (std::int64_t w = 0; w < words; ++w) {
    const auto key = P::load_lanes(lanes + w * kLanes);
    for (int i = 0; i < kRows; ++i) acc[i] = P::step(acc[i], broadcast_word<P>(q[i] + w * 4), key);
  }
  for (int i = 0; i < kRows; ++i) {
    const Vec seen =
        select(igreater(iset1(limits[i]), iload(kOrder.data())), acc[i], set1(kLowest));
    best[rows[i]] = std::max(best[rows[i]], largest(max(seen, set1(kLowest))));
  }
}

/// The rows that want one run of a block, and how many of its keys they see.
struct RunRows {
  std::uint16_t rows[kTileRows];
  std::int32_t seen[kTileRows];
  std::int64_t count = 0;
};

/// The scores of one run for all rows that want it.
template <class K>
void score_run_of_block(const BlockSink& sink, const TileBuffers& buffers, const BlockKeys& block,
                        std::int64_t begin, const RunRows& list, float* best) {
  using P = typename K::P;
  constexpr int kRows = kTile;  // of a batch: as many sums as there are for keys elsewhere
  const ScoreTile& tile = sink.tile;
  for (std::int64_t j = begin; j < std::min(begin + kKeyRun, block.size); j += kLanes) {
    transpose_keys<K>(tile, block, j, buffers);
    std::int32_t limits[kTileRows];
    for (std::int64_t i = 0; i < list.count; ++i)
      limits[i] = list.seen[i] - static_cast<std::int32_t>(j - begin);
    std::int64_t i = 0;
    for (; i + kRows <= list.count; i += kRows)
      score_across<P, kRows>(tile, buffers, list.rows + i, limits + i, best);
    if constexpr (kRows == 8) {
      if (i + 4 <= list.count) {
        score_across<P, 4>(tile, buffers, list.rows + i, limits + i, best);
        i += 4;
      }
    }
    if (i + 2 <= list.count) {
      score_across<P, 2>(tile, buffers, list.rows + i, limits + i, best);
      i += 2;
    }
    for (; i < list.count; ++i) score_across<P, 1>(tile, buffers, list.rows + i, limits + i, best);
  }
}

template <class K>
void score_wanted_many(const BlockSink& sink, const FilterRows& filter,
                       const TileBuffers& buffers) {
  using P = typename K::P;
  const ScoreTile& tile = sink.tile;
  const std::int64_t row_bytes = tile.dim / P::kPack * 4;
  std::uint16_t wanting[kTileRows];
  float best[kTileRows];
  RunRows runs[kMostRuns];
  bool packed = false;
  std::int64_t first = 0;
  for (std::int64_t block = tile.blocks.begin; block < tile.blocks.end; ++block) {
    while (first < tile.num_rows && sink.rows.end[first] <= block) ++first;
    if (first == tile.num_rows) return;
    const std::int64_t count = rows_that_want(tile, filter, block, first, wanting);
    if (count == 0) continue;
    for (std::int64_t r = 0; !packed && r < tile.num_rows; ++r)
      pack_query<K>(tile, query_row(tile, r), buffers.q + r * row_bytes);
    packed = true;
    const BlockKeys keys = keys_of_block(tile, sink.rows, block);
    for (RunRows& run : runs) run.count = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t r = wanting[i];
      best[r] = kLowest;
      for (std::uint32_t held = filter.runs[block * filter.stride + r]; held != 0;
           held &= held - 1) {
        const int n = std::countr_zero(held);
        RunRows& run = runs[n];
        run.rows[run.count] = static_cast<std::uint16_t>(r);
        run.seen[run.count++] = static_cast<std::int32_t>(
            std::clamp<std::int64_t>(sink.rows.visible[r] - keys.begin - n * kKeyRun, 0, kKeyRun));
      }
    }
    for (int n = 0; n < kMostRuns; ++n) {
      if (runs[n].count > 0) score_run_of_block<K>(sink, buffers, keys, n * kKeyRun, runs[n], best);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t r = wanting[i];
      const float threshold = sink.rows.threshold[r];
      if (best[r] > threshold || std::isnan(threshold)) sink.push_one(block, r, best[r]);
    }
  }
}

template <class K>
void score_wanted_as(const BlockSink& sink, const FilterRows& filter, const TileBuffers& buffers) {
  const ScoreTile& tile = sink.tile;
  if (!tile.few_rows) return score_wanted_many<K>(sink, filter, buffers);
  score_few<K>(sink, buffers, [&](std::int64_t block, std::int64_t first) {
    std::uint16_t list[kFewRows];
    return rows_that_want(tile, filter, block, first, list) > 0;
  });
}

/// As score_tile_on.
template <class Bf16>
void score_wanted_on(const ScoreTile& tile, const TileRows& rows, const FilterRows& filter,
                     const TileBuffers& buffers) {
  const ScoreTarget lists;
  const BlockSink sink{tile, rows, lists};
  if constexpr (Bf16::kPack == 2) {
    if (tile.dtype == DType::BF16)
      return score_wanted_as<KeysIn<DType::BF16>>(sink, filter, buffers);
    Bf16::level_of_floats().select.score_wanted(tile, rows, filter, buffers);
  } else {
    with_storage(tile.dtype, [&](auto storage) {
      score_wanted_as<KeysIn<decltype(storage)::kType>>(sink, filter, buffers);
    });
  }
}

inline void score_wanted(const ScoreTile& tile, const TileRows& rows, const FilterRows& filter,
                         const TileBuffers& buffers) {
  score_wanted_on<ProductsOfBf16>(tile, rows, filter, buffers);
}

}  // namespace selection
