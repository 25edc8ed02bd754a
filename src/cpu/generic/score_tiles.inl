// SPDX-License-Identifier: MIT
// Scoring and its 8-bit filter by tiles, and the table of a level that has them: many rows of bf16
// pairs, and of codes. A tile of scores is [16 keys][16 rows], keys where they lie; what follows,
// maxima, bounds and lists, is that of score.inl and score_filter.inl, behind which this is
// included. Few rows of other keys than codes of groups, and products of floats, are the level
// below's.

namespace selection {

/// Bytes of a row that tiles read whole.
constexpr std::int64_t whole_steps(std::int64_t bytes) {
  return core::ceil_div(bytes, kTileRow) * kTileRow;
}

/// Up to 16 rows of at most `steps` steps as columns: [word][lane]. `rows` may be overwritten.
MSA_INLINE_PIECE void turn_to_columns(const std::byte* rows, std::int64_t stride,
                                      std::int64_t steps, std::byte* to) {
  for (std::int64_t step = 0; step < steps; ++step) {
    transpose_words(reinterpret_cast<const Bits*>(rows + step * kTileRow),
                    stride / static_cast<std::int64_t>(sizeof(Bits)),
                    reinterpret_cast<Bits*>(to + step * kTileBytes), kLanes);
  }
}

/// Queries as [column][word][lane], zeros behind the dim and the last row. kTurned: every 16
/// elements in the order in which codes of a group are looked up.
template <class K, bool kTurned = false>
void pack_query_tiles(const ScoreTile& tile, const TileBuffers& buffers) {
  const std::int64_t bytes = whole_steps(2 * tile.dim), steps = bytes / kTileRow;
  alignas(64) std::byte rows[kLanes * 2 * kMaxDim];
  for (std::int64_t r = 0; r < tile.num_rows; r += kLanes) {
    std::memset(rows, 0, static_cast<std::size_t>(kLanes * bytes));
    for (std::int64_t i = 0; i < std::min<std::int64_t>(kLanes, tile.num_rows - r); ++i) {
      std::byte* row = rows + i * bytes;
      pack_query<K>(tile, query_row(tile, r + i), row);
      if constexpr (kTurned) {
        for (std::int64_t g = 0; g < tile.dim / 16; ++g) K::Dims::turn(row + g * kGroupBytes);
      }
    }
    turn_to_columns(rows, bytes, steps, buffers.q + r * bytes);
  }
}

/// Runs of 16 keys as tiles read them.
struct KeyRuns {
  TileRows16 runs[kMostRuns];
  int count = 0;
};

/// The runs of a block: where they lie if they are whole and what is stored is multiplied, else
/// packed, the last key again up to 16.
template <class K>
void stage_runs(const ScoreTile& tile, const BlockKeys& block, const TileBuffers& buffers,
                KeyRuns& keys) {
  const std::int64_t bytes = whole_steps(2 * tile.dim);
  const auto all = K::scaling_of_all(tile.keys);
  keys.count = 0;
  for (std::int64_t j = 0; j < block.size; j += kKeyRun) {
    TileRows16& run = keys.runs[keys.count++];
    const std::byte* key = tile.keys.key(block.begin + j);
    if (K::kDirect && bytes == 2 * tile.dim && j + kKeyRun <= block.size) {
      run = {key, tile.keys.token_stride, kTileRow};
      continue;
    }
    const std::byte* scale = K::kScaled ? tile.keys.scale(block.begin + j) : nullptr;
    run = {buffers.k + j * bytes, bytes, kTileRow};
    for (std::int64_t i = 0; i < kKeyRun; ++i) {
      const std::int64_t at = std::min(i, block.size - j - 1);
      std::byte* to = buffers.k + (j + i) * bytes;
      pack_row<K>(key + at * tile.keys.token_stride, tile.dim, to,
                  K::join(K::scaling(scale + at * tile.keys.scale_token), all));
      std::memset(to + 2 * tile.dim, 0, static_cast<std::size_t>(bytes - 2 * tile.dim));
    }
  }
}

/// f(first, tiles) for every kRuns runs of a block against kColumns columns: products of the runs
/// from `first` on, [16 kRuns][kColumns][16]. It is called while the next ones are multiplied.
template <bool kCodes, int kRuns, int kColumns, class F>
MSA_INLINE void for_products(const KeyRuns& keys, const std::byte* const (&columns)[kColumns],
                             std::int64_t steps, const F& f) {
  constexpr int kWords = kRuns * kColumns * 256;
  alignas(64) std::byte products[2][kWords * 4];
  int side = 0, before = -1, before_runs = 0;
  const auto use = [&] {
    if (before >= 0) f(before, before_runs, products[side ^ 1]);
  };
  int n = 0;
  const auto multiply_runs = [&]<int kCount>() {
    TileRows16 rows[kCount];
    std::copy_n(keys.runs + n, kCount, rows);
    repeat<kCount * kColumns>([]<int t>() { Tiles::clear<t>(); });
    multiply_tiles<kCodes, kCount, kColumns>(rows, columns, steps);
    use();
    store_tiles<kCount, kColumns>(products[side]);
    side ^= 1;
    before = n;
    before_runs = kCount;
    n += kCount;
  };
  while (n + kRuns <= keys.count) multiply_runs.template operator()<kRuns>();
  while (n < keys.count) multiply_runs.template operator()<1>();
  use();
}

template <int kColumns>
MSA_INLINE_PIECE void set_columns(const TileBuffers& buffers, std::int64_t column,
                                  std::int64_t bytes, const std::byte* (&columns)[kColumns]) {
  for (int c = 0; c < kColumns; ++c)
    columns[c] = buffers.q + (column + c) * std::int64_t{kLanes} * bytes;
}

/// Keys of the block that each lane sees.
template <int kColumns>
MSA_INLINE_PIECE void set_seen(const BlockSink& sink, const BlockKeys& keys, std::int64_t row,
                               std::int32_t* limits) {
  for (int i = 0; i < kColumns * kLanes; ++i) {
    limits[i] = static_cast<std::int32_t>(
        std::clamp<std::int64_t>(sink.rows.visible[row + i] - keys.begin, 0, keys.size));
  }
}

/// One block against kColumns columns from `column` on, as score_columns.
template <int kColumns>
void score_column_tiles(const BlockSink& sink, const TileBuffers& buffers, std::int64_t block,
                        const BlockKeys& keys, const KeyRuns& runs, std::int64_t column,
                        std::int64_t first) {
  const std::int64_t bytes = whole_steps(2 * sink.tile.dim), row = column * kLanes;
  const std::byte* columns[kColumns];
  set_columns<kColumns>(buffers, column, bytes, columns);
  Vec best[kColumns];
  for (int c = 0; c < kColumns; ++c) best[c] = set1(kLowest);
  const bool masked = sink.rows.visible[std::max(first, row)] < keys.begin + keys.size;
  alignas(64) std::int32_t limits[kColumns * kLanes];
  if (masked) set_seen<kColumns>(sink, keys, row, limits);
  for_products<false, 4 / kColumns, kColumns>(
      runs, columns, bytes / kTileRow, [&](int run, int count, const std::byte* products) {
        const auto* scores = reinterpret_cast<const float*>(products);
        for (int k = 0; k < 16 * count; ++k) {
          for (int c = 0; c < kColumns; ++c, scores += kLanes) {
            Vec score = load(scores);
            if (masked) {
              const IVec key = iset1(static_cast<std::int32_t>(run * kKeyRun + k));
              score = select(igreater(iload(limits + c * kLanes), key), score, set1(kLowest));
            }
            best[c] = max(score, best[c]);  // a NaN score leaves the second operand
          }
        }
      });
  for (int c = 0; c < kColumns; ++c) sink.take(block, row + c * kLanes, first, best[c]);
}

/// Asks for what the walk will read; keys are read where they lie, so all of a block at once.
MSA_INLINE_PIECE void ask_ahead(Lookahead& ahead, const BlockKeys& block) {
  for (std::int64_t j = 0; j < block.size; j += kKeyRun) {
    ahead.start_run(block.begin + j);
    for (std::int64_t i = 0; i < kKeyRun; ++i) ahead.ask(i);
  }
}

template <class K>
void score_row_tiles(const BlockSink& sink, const TileBuffers& buffers) {
  const ScoreTile& tile = sink.tile;
  const std::int64_t columns = core::ceil_div(tile.num_rows, kLanes);
  const Tiles tiles;
  Lookahead ahead = look_ahead<K>(tile, sink.rows);
  bool packed = false;
  std::int64_t first = 0;
  for (std::int64_t block = tile.blocks.begin; block < tile.blocks.end; ++block) {
    while (first < tile.num_rows && sink.rows.end[first] <= block) ++first;
    if (first == tile.num_rows) return;
    if (!packed) pack_query_tiles<K>(tile, buffers);
    packed = true;
    const BlockKeys keys = keys_of_block(tile, sink.rows, block);
    KeyRuns runs;
    ask_ahead(ahead, keys);
    stage_runs<K>(tile, keys, buffers, runs);
    std::int64_t column = first / kLanes;
    for (; column + 2 <= columns; column += 2)
      score_column_tiles<2>(sink, buffers, block, keys, runs, column, first);
    if (column < columns) score_column_tiles<1>(sink, buffers, block, keys, runs, column, first);
  }
}

// ---- few rows over groups of codes ----

/// 16 keys of a block on their way through a GroupPipe.
struct GroupRun {
  std::int64_t block;
  std::int64_t first;  // the first row that needs the block
  BlockKeys keys;      // of the block
  std::int64_t begin;  // of the run, in the block
  bool masked;
};

/// Scores runs of keys for one column of rows, three at a time: while one is looked up, which is
/// most of the work, the unit of tiles multiplies the one before it, and the scores of the one
/// before that, stored a while ago, are taken.
template <class K>
class GroupPipe {
 public:
  /// Tiles are configured.
  GroupPipe(const BlockSink& sink, const TileBuffers& buffers)
      : sink_(sink), queries_(buffers.q), ahead_(look_ahead<K>(sink.tile, sink.rows)) {
    std::memset(values_, 0, sizeof values_);  // what lies behind the dim stays zero
    pack_query_tiles<K, true>(sink.tile, buffers);
    repeat<kHeld>([&]<int i>() {
      if (i < steps_) Tiles::load<kHeldIn[i]>(queries_ + i * kTileBytes, kTileRow);
    });
  }

  void push(const GroupRun& run) {
    const std::int64_t at = run.keys.begin + run.begin;
    const IndexKeys& keys = sink_.tile.keys;
    const Groups from{reinterpret_cast<const std::uint8_t*>(keys.key(at)),
                      reinterpret_cast<const std::uint8_t*>(keys.scale(at))};
    const std::int64_t last = std::min(kKeyRun, run.keys.size - run.begin) - 1;
    ahead_.start_run(at);
    for (std::int64_t i = 0; i < kKeyRun; i += kAtOnce) {
      multiply(i / kAtOnce);
      if (last == kKeyRun - 1) ahead_.template ask_short<kAtOnce>(i);
      if (last == kKeyRun - 1 && usual_) {
        look_up_usual(from, i);
      } else {
        look_up(from, i, last);
      }
    }
    pass_on();
    runs_[side_] = run;
    side_ ^= 1;
    ++pushed_;
  }

  /// Behind the last run.
  void drain() {
    if (pushed_ == 0) return;
    for (int part = 0; part < kParts; ++part) multiply(part);
    pass_on();
    take(side_ ^ 1);
  }

 private:
  static constexpr int kAtOnce = 4;  // keys
  static constexpr int kParts = kKeyRun / kAtOnce;
  // Registers: sums in 0, keys in 4 and 5, queries of the first steps in those that they leave, of
  // the others, of more than 128 dims, in 7 when they are multiplied.
  static constexpr int kHeld = 4;
  static constexpr int kHeldIn[kHeld] = {1, 2, 3, 6};
  static constexpr int kUsualGroups = 8;  // of 128 dims, whose scales lie side by side

  /// Where the codes and scales of a run's first key lie.
  struct Groups {
    const std::uint8_t* codes;
    const std::uint8_t* scales;
  };

  /// The values of a key. `step`: from scale to scale.
  MSA_INLINE static void look_up_key(const GroupValues* table, Groups from, std::int64_t groups,
                                     std::int64_t step, std::byte* to) {
    for (std::int64_t g = 0; g < groups; ++g) {
      K::Dims::widen(from.codes + g * 8, table[from.scales[g * step]].halves.data(),
                     to + g * kGroupBytes);
    }
  }

  /// Of the kAtOnce keys from number `i` of a whole run on; straight on, where look_up counts.
  MSA_INLINE void look_up_usual(Groups from, std::int64_t i) {
    // Copied, as what is stored might else be a member.
    const IndexKeys keys = sink_.tile.keys;
    constexpr std::int64_t kBytes = kUsualGroups * kGroupBytes;
    std::byte* to = values_[side_] + i * kBytes;
    from.codes += i * keys.token_stride;
    from.scales += i * keys.scale_token;
    for (int k = 0; k < kAtOnce; ++k) {
      look_up_key(keys.groups, from, kUsualGroups, 1, to);
      from.codes += keys.token_stride;
      from.scales += keys.scale_token;
      to += kBytes;
    }
  }

  /// Of a run whose key number `last` stands for those behind it, too.
  MSA_PIECE void look_up(const Groups& from, std::int64_t i, std::int64_t last) {
    const IndexKeys& keys = sink_.tile.keys;
    for (std::int64_t n = i; n < i + kAtOnce; ++n) {
      const std::int64_t k = std::min(n, last);
      look_up_key(keys.groups,
                  {from.codes + k * keys.token_stride, from.scales + k * keys.scale_token},
                  sink_.tile.dim / 16, keys.scale_group, values_[side_] + n * bytes_);
    }
  }

  /// Of the products of the run before this one, one part of kParts.
  MSA_INLINE void multiply(std::int64_t part) {
    if (pushed_ == 0) return;
    if (part == 0) Tiles::clear<0>();
    const std::byte* rows = values_[side_ ^ 1];
    const std::int64_t end = (part + 1) * steps_ / kParts;
    for (std::int64_t step = part * steps_ / kParts; step < end; ++step) {
      bool held = false;
      repeat<kHeld>([&]<int i>() {
        if (step != i) return;
        Tiles::load<4 + i % 2>(rows + i * kTileRow, bytes_);
        add_product<false, 0, 4 + i % 2, kHeldIn[i]>();
        held = true;
      });
      if (held) continue;
      Tiles::load<4>(rows + step * kTileRow, bytes_);
      Tiles::load<7>(queries_ + step * kTileBytes, kTileRow);
      add_product<false, 0, 4, 7>();
    }
  }

  /// When this run is looked up and the one before it multiplied.
  MSA_INLINE void pass_on() {
    if (pushed_ >= 2) take(side_);
    if (pushed_ >= 1) Tiles::store<0>(products_[side_ ^ 1], kTileRow);
  }

  MSA_PIECE void take(int side) {
    const GroupRun& run = runs_[side];
    const float* scores = products_[side];
    Vec best = best_;
    if (run.masked) {
      alignas(64) std::int32_t limits[kLanes];
      set_seen<1>(sink_, run.keys, 0, limits);
      for (int k = 0; k < kKeyRun; ++k) {
        const IVec key = iset1(static_cast<std::int32_t>(run.begin + k));
        const Vec score = load(scores + k * kLanes);
        best = max(select(igreater(iload(limits), key), score, set1(kLowest)), best);
      }
    } else {
      // Side by side, as each waits for the one before. A NaN score leaves the second operand.
      Vec among[4] = {best, set1(kLowest), set1(kLowest), set1(kLowest)};
      for (int k = 0; k < kKeyRun; ++k) among[k % 4] = max(load(scores + k * kLanes), among[k % 4]);
      best = max(max(among[0], among[1]), max(among[2], among[3]));
    }
    best_ = best;
    if (run.begin + kKeyRun < run.keys.size) return;
    sink_.take(run.block, 0, run.first, best);
    best_ = set1(kLowest);
  }

  const BlockSink& sink_;
  const std::byte* queries_;
  Lookahead ahead_;
  const std::int64_t bytes_ = whole_steps(2 * sink_.tile.dim);  // of a key's values
  const std::int64_t steps_ = bytes_ / kTileRow;
  const bool usual_ = sink_.tile.dim == kUsualGroups * 16 && sink_.tile.keys.scale_group == 1;
  std::int64_t pushed_ = 0;
  int side_ = 0;  // of what is looked up now
  GroupRun runs_[2] = {};
  Vec best_ = set1(kLowest);
  alignas(64) std::byte values_[2][kKeyRun * 2 * kMaxDim];
  alignas(64) float products_[2][kKeyRun * kLanes];
};

template <class K>
void score_group_tiles(const BlockSink& sink, const TileBuffers& buffers) {
  const ScoreTile& tile = sink.tile;
  const Tiles tiles;
  GroupPipe<K> pipe(sink, buffers);
  std::int64_t first = 0;
  for (std::int64_t block = tile.blocks.begin; block < tile.blocks.end; ++block) {
    while (first < tile.num_rows && sink.rows.end[first] <= block) ++first;
    if (first == tile.num_rows) break;
    const BlockKeys keys = keys_of_block(tile, sink.rows, block);
    const bool masked = sink.rows.visible[first] < keys.begin + keys.size;
    for (std::int64_t begin = 0; begin < keys.size; begin += kKeyRun)
      pipe.push({block, first, keys, begin, masked});
  }
  pipe.drain();
}

// ---- the filter's first pass ----

/// Codes of the queries as [column][word][lane]; their rows have zeros behind the dim.
inline void pack_code_tiles(const ScoreTile& tile, const FilterRows& rows,
                            const TileBuffers& buffers) {
  const std::int64_t bytes = whole_steps(tile.dim);
  for (std::int64_t r = 0; r < tile.num_rows; r += kLanes) {
    turn_to_columns(reinterpret_cast<const std::byte*>(rows.codes + r * rows.code_stride),
                    rows.code_stride, bytes / kTileRow, buffers.q + r * bytes);
  }
}

/// As stage_runs, of codes.
inline void stage_code_runs(const ScoreTile& tile, const IndexKeys& keys, const BlockKeys& block,
                            const TileBuffers& buffers, Lookahead& ahead, KeyRuns& staged) {
  const std::int64_t bytes = whole_steps(tile.dim);
  ask_ahead(ahead, block);
  staged.count = 0;
  for (std::int64_t j = 0; j < block.size; j += kKeyRun) {
    TileRows16& run = staged.runs[staged.count++];
    const std::byte* key = keys.key(block.begin + j);
    run = {key, keys.token_stride, kTileRow};
    if (bytes == tile.dim && j + kKeyRun <= block.size) continue;
    run = {buffers.k + j * bytes, bytes, kTileRow};
    for (std::int64_t i = 0; i < kKeyRun; ++i) {
      const std::int64_t at = std::min(i, block.size - j - 1);
      std::byte* to = buffers.k + (j + i) * bytes;
      std::memcpy(to, key + at * keys.token_stride, static_cast<std::size_t>(tile.dim));
      std::memset(to + tile.dim, 0, static_cast<std::size_t>(bytes - tile.dim));
    }
  }
}

/// As bound_columns.
template <int kColumns>
void bound_column_tiles(const BlockSink& sink, const FilterRows& filter, const TileBuffers& buffers,
                        std::int64_t block, const BlockKeys& keys, const KeyRuns& runs,
                        const BlockBounds& bounds, std::int64_t column, std::int64_t first) {
  const std::int64_t bytes = whole_steps(sink.tile.dim), row = column * kLanes;
  const std::byte* columns[kColumns];
  set_columns<kColumns>(buffers, column, bytes, columns);
  const bool masked = sink.rows.visible[std::max(first, row)] < keys.begin + keys.size;
  alignas(64) std::int32_t limits[kColumns * kLanes];
  if (masked) set_seen<kColumns>(sink, keys, row, limits);
  ColumnBounds<kColumns> found;
  int piece = 0;
  for_products<true, 4 / kColumns, kColumns>(
      runs, columns, bytes / kTileRow, [&](int run, int count, const std::byte* products) {
        const std::int64_t begin = run * kKeyRun, end = begin + count * kKeyRun;
        for (; piece < bounds.count && bounds.pieces[piece].begin < end; ++piece) {
          const PageBound& page = bounds.pieces[piece];
          IVec best[kColumns];
          for (int c = 0; c < kColumns; ++c) best[c] = iset1(kNoKey);
          for (std::int64_t k = page.begin; k < page.end; ++k) {
            const std::byte* of_key = products + (k - begin) * kColumns * kTileRow;
            for (int c = 0; c < kColumns; ++c) {
              IVec product = iload(of_key + c * kTileRow);
              if (masked) {
                product = iselect(
                    igreater(iload(limits + c * kLanes), iset1(static_cast<std::int32_t>(k))),
                    product, iset1(kNoKey));
              }
              best[c] = imax(best[c], product);
            }
          }
          found.include(filter, row, page, best);
        }
      });
  found.keep(filter, block, keys, row, first);
}

inline void bound_row_tiles(const BlockSink& sink, const FilterKeys& keys, const FilterRows& filter,
                            const TileBuffers& buffers) {
  const ScoreTile& tile = sink.tile;
  const std::int64_t columns = core::ceil_div(tile.num_rows, kLanes);
  const Tiles tiles;
  Lookahead ahead{keys.codes, sink.rows.visible[tile.num_rows - 1], tile.dim};
  pack_code_tiles(tile, filter, buffers);
  std::fill_n(filter.lower, columns * kLanes * filter.topk, kLowest);
  std::int64_t first = 0;
  for (std::int64_t block = tile.blocks.begin; block < tile.blocks.end; ++block) {
    while (first < tile.num_rows && sink.rows.end[first] <= block) ++first;
    if (first == tile.num_rows) break;
    const BlockKeys seen = keys_of_block(tile, sink.rows, block);
    BlockBounds bounds;
    read_bounds(tile, keys, seen, true, bounds);
    KeyRuns runs;
    stage_code_runs(tile, keys.codes, seen, buffers, ahead, runs);
    std::int64_t column = first / kLanes;
    for (; column + 2 <= columns; column += 2)
      bound_column_tiles<2>(sink, filter, buffers, block, seen, runs, bounds, column, first);
    if (column < columns)
      bound_column_tiles<1>(sink, filter, buffers, block, seen, runs, bounds, column, first);
  }
  list_lower(tile, sink.rows, filter);
}

// ---- its second pass ----

/// The scores of one run for all rows that want it, 16 rows at a time: [rows][keys], the sums that
/// [keys][rows] have.
template <class K>
requires Tiled<typename K::P>
void score_run_of_block(const BlockSink& sink, const TileBuffers& buffers, const BlockKeys& block,
                        std::int64_t begin, const RunRows& list, float* best) {
  const ScoreTile& tile = sink.tile;
  const std::int64_t bytes = whole_steps(2 * tile.dim), steps = bytes / kTileRow;
  alignas(64) std::byte packed[kLanes * 2 * kMaxDim];
  alignas(64) float scores[kLanes * kLanes];
  std::memset(packed, 0, static_cast<std::size_t>(kLanes * bytes));
  const std::byte* run = tile.keys.key(block.begin + begin);
  const std::int64_t keys = std::min(kKeyRun, block.size - begin);
  for (std::int64_t i = 0; i < keys; ++i)
    pack_row<K>(run + i * tile.keys.token_stride, tile.dim, packed + i * bytes);
  turn_to_columns(packed, bytes, steps, buffers.k);
  alignas(64) static constexpr auto kOrder = [] {
    std::array<std::int32_t, kLanes> order{};
    for (int i = 0; i < kLanes; ++i) order[static_cast<std::size_t>(i)] = i;
    return order;
  }();
  std::memset(packed, 0, static_cast<std::size_t>(kLanes * bytes));
  for (std::int64_t at = 0; at < list.count; at += kLanes) {
    const std::int64_t rows = std::min<std::int64_t>(kLanes, list.count - at);
    for (std::int64_t i = 0; i < rows; ++i) {
      std::memcpy(packed + i * bytes, buffers.q + list.rows[at + i] * 2 * tile.dim,
                  static_cast<std::size_t>(2 * tile.dim));
    }
    const TileRows16 queries[1] = {{packed, bytes, kTileRow}};
    const std::byte* const columns[1] = {buffers.k};
    Tiles::clear<0>();
    multiply_tiles<false, 1, 1>(queries, columns, steps);
    store_tiles<1, 1>(scores);
    for (std::int64_t i = 0; i < rows; ++i) {
      const Vec seen = select(igreater(iset1(list.seen[at + i]), iload(kOrder.data())),
                              load(scores + i * kLanes), set1(kLowest));
      float& row = best[list.rows[at + i]];
      row = std::max(row, largest(max(seen, set1(kLowest))));
    }
  }
}

// ---- the way in ----

/// Whether scores are sums of bf16 pairs, and rows enough to fill tiles. Groups of codes cost more
/// to look up than memory does, so that they are multiplied by tiles whatever the rows.
inline bool by_tiles(const ScoreTile& tile) {
  if (tile.key_dtype == DType::E2M1) return tile.pairs;
  return tile.key_dtype == DType::BF16 && !tile.few_rows;
}

inline void score_by_tiles(const ScoreTile& tile, const TileRows& rows, const TileBuffers& buffers,
                           const ScoreTarget& target) {
  if (!by_tiles(tile)) return LevelBelow::kernels().select.score_tile(tile, rows, buffers, target);
  const BlockSink sink{tile, rows, target};
  if (tile.key_dtype == DType::E2M1) {
    using K = KeysIn<DType::E2M1, TileProducts>;
    return tile.few_rows ? score_group_tiles<K>(sink, buffers) : score_row_tiles<K>(sink, buffers);
  }
  score_row_tiles<KeysIn<DType::BF16, TileProducts>>(sink, buffers);
}

inline void bound_by_tiles(const ScoreTile& tile, const FilterKeys& keys, const TileRows& rows,
                           const FilterRows& filter, const TileBuffers& buffers) {
  if (tile.few_rows)
    return LevelBelow::kernels().select.bound_tile(tile, keys, rows, filter, buffers);
  const ScoreTarget lists;
  bound_row_tiles(BlockSink{tile, rows, lists}, keys, filter, buffers);
}

inline void score_wanted_by_tiles(const ScoreTile& tile, const TileRows& rows,
                                  const FilterRows& filter, const TileBuffers& buffers) {
  if (!by_tiles(tile))
    return LevelBelow::kernels().select.score_wanted(tile, rows, filter, buffers);
  const Tiles tiles;
  const ScoreTarget lists;
  score_wanted_many<KeysIn<DType::BF16, TileProducts>>(BlockSink{tile, rows, lists}, filter,
                                                       buffers);
}

constexpr SelectKernels tile_kernels() {
  return {.score_tile = score_by_tiles,
          .bound_tile = bound_by_tiles,
          .score_wanted = score_wanted_by_tiles,
          .scan_scores = [](const ScoreRow& row, std::int64_t room, Candidate* list) {
            return LevelBelow::kernels().select.scan_scores(row, room, list);
          }};
}

}  // namespace selection
