// SPDX-License-Identifier: MIT
// Block scores of a tile of rows: dot products of index queries and keys and their maximum per
// block, fp32 sums. Two ways: rows in the lanes (many rows: each key is broadcast, all that follows
// is vertical) and the head dim in the lanes (few rows: keys stream past once, bound by memory).
// What a score is worth does not depend on the tile around it.

namespace selection {

/// Keys per block of 16 that lie at one stride.
inline constexpr std::int64_t kKeyRun = 16;
inline constexpr float kLowest = -std::numeric_limits<float>::infinity();

MSA_INLINE Vec sum_all(const Vec* v) { return sum_each(v); }

/// Sums of products with the head dim in the lanes: kStep dims at a time.
template <class P>
struct WholeVectors {
  using Sum = Vec;
  static constexpr std::int64_t kStep = kLanes * P::kPack;
  MSA_INLINE static Vec zero() { return set1(0.0f); }
  MSA_INLINE static auto load(const typename P::Word* p) { return P::load_lanes(p); }
  template <class Operand>
  MSA_INLINE static Vec step(Vec acc, const Operand& a, const Operand& b) {
    return P::step(acc, a, b);
  }
  MSA_INLINE static Vec sum_each(const Vec* v) { return sum_all(v); }
};

template <DType kStored, class P, int kPack = P::kPack>
struct DimsOf {
  using Type = WholeVectors<P>;
};
template <class P>
struct DimsOf<DType::E2M1, P, 2> {
  using Type = typename P::Groups;
};

/// Keys as they are stored, and the products of them and their queries: pairs of bf16 where the
/// level multiplies them, fp32 otherwise.
template <DType kStored, class Multiplied = ProductsAs<kStored>>
struct KeysIn {
  using S = StoredAs<kStored>;
  using P = Multiplied;
  using Dims = typename DimsOf<kStored, P>::Type;
  /// What is stored is what is multiplied: no conversion.
  static constexpr bool kDirect =
      kStored == DType::F32 || (kStored == DType::BF16 && P::kPack == 2);
  /// Each key has what scales it.
  static constexpr bool kScaled = kStored == DType::E4M3 || kStored == DType::E2M1;

  /// Whether keys with the dim in the lanes are walked group by group (score_few_groups).
  static constexpr bool kGroups = kStored == DType::E2M1 && P::kPack == 2;

  /// What scales one key. Of groups it is where their scales lie, which `all` looks up.
  MSA_INLINE static auto scaling(const std::byte* scale) {
    const auto* const from = reinterpret_cast<const typename S::Scale*>(scale);
    if constexpr (kStored == DType::E2M1) {
      return from;
    } else {
      return S::scaling(IndexKeys{}, from);
    }
  }
  MSA_INLINE static auto scaling_of_all(const IndexKeys& keys) {
    if constexpr (kStored == DType::E2M1) {
      return S::scaling(keys, nullptr);
    } else {
      return Unscaled{};
    }
  }
  template <class Scaling, class All>
  MSA_INLINE static auto join(Scaling scaling, const All& all) {
    if constexpr (kStored == DType::E2M1) {
      All joined = all;
      joined.scales = scaling;
      return joined;
    } else {
      return scaling;
    }
  }

  /// Dims::kStep values of a row, from dim `d` on.
  template <class Scaling>
  MSA_INLINE static auto operand(const std::byte* row, std::int64_t d, const Scaling& scaling) {
    const auto* const from = reinterpret_cast<const typename S::T*>(row);
    if constexpr (P::kPack == 2) {
      return iload(from + d);
    } else {
      return S::values(from, d, scaling);
    }
  }
};

/// A stored row as operand words.
template <class K, class Scaling = Unscaled>
MSA_INLINE_PIECE void pack_row(const std::byte* from, std::int64_t dim, std::byte* to,
                               const Scaling& scaling = {}) {
  using S = typename K::S;
  if constexpr (K::kDirect) {
    std::memcpy(to, from, static_cast<std::size_t>(S::bytes(dim)));
  } else if constexpr (K::P::kPack == 2) {
    const auto* const codes = reinterpret_cast<const typename S::T*>(from);
    auto* const halves = reinterpret_cast<std::uint16_t*>(to);
    for (std::int64_t d = 0; d < dim; d += 16)
      S::template halves<typename K::P>(codes, d, scaling, halves + d);
  } else {
    for (std::int64_t d = 0; d < dim; d += kLanes)
      store(reinterpret_cast<float*>(to) + d, K::operand(from, d, scaling));
  }
}

/// A query as the operand words that keys meet: of their type, or any beside codes.
template <class K>
void pack_query(const ScoreTile& tile, const std::byte* from, std::byte* to) {
  using P = typename K::P;
  if constexpr (!K::kScaled) {
    pack_row<K>(from, tile.dim, to);
  } else if (tile.dtype == DType::E4M3) {
    pack_row<KeysIn<DType::E4M3, P>>(from, tile.dim, to, set1(1.0f));
  } else if constexpr (P::kPack == 2) {
    pack_row<KeysIn<DType::BF16, P>>(from, tile.dim, to);
  } else {
    with_storage(tile.dtype, [&](auto storage) {
      using S = StoredAs<decltype(storage)::kType>;
      const auto* row = reinterpret_cast<const typename S::T*>(from);
      for (std::int64_t d = 0; d < tile.dim; d += kLanes)
        store(reinterpret_cast<float*>(to) + d, S::load_vec(row + d));
    });
  }
}

/// Where a row of the tile starts in index_q.
MSA_INLINE const std::byte* query_row(const ScoreTile& tile, std::int64_t r) {
  const std::int64_t row = tile.first_row + r;
  return tile.q + row / tile.group * tile.q_token_stride + row % tile.group * tile.q_head_stride;
}

/// New candidates after which a threshold that leaves keys out is worth the time it takes.
inline constexpr std::int32_t kUnsettled = 8;

/// Hands the maxima of a block to their destination: candidates that pass their row's threshold, or
/// score rows.
struct BlockSink {
  const ScoreTile& tile;
  const TileRows& rows;
  const ScoreTarget& target;

  void push_one(std::int64_t block, std::int64_t r, float best) const {
    const auto id = static_cast<std::int32_t>(tile.request->blocks().begin + block);
    rows.threshold[r] = push_candidate(rows.lists + r * rows.list_stride, rows.count[r],
                                       rows.room[r], rows.threshold[r], make_candidate(best, id));
  }
  /// Gives rows that hold enough candidates a threshold, or a new one.
  [[gnu::noinline]] void settle() const {
    for (std::int64_t r = 0; target.scores == nullptr && r < tile.num_rows; ++r) {
      const bool first = std::isnan(rows.threshold[r]) && rows.count[r] > rows.room[r];
      if (!first && rows.count[r] < rows.room[r] + kUnsettled) continue;
      Candidate* list = rows.lists + r * rows.list_stride;
      rows.count[r] = static_cast<std::int32_t>(keep_best(list, rows.count[r], rows.room[r]));
      rows.threshold[r] = score_of(list[rows.room[r] - 1]);
    }
  }
  [[gnu::noinline]] void push(std::int64_t block, std::int64_t row, unsigned passing,
                              const float* best) const {
    for (; passing != 0; passing &= passing - 1) {
      const int lane = std::countr_zero(passing);
      push_one(block, row + lane, best[lane]);
    }
  }
  void write(std::int64_t block, std::int64_t row, std::int64_t lanes_begin, std::int64_t lanes_end,
             const float* best) const {
    for (std::int64_t lane = lanes_begin; lane < lanes_end; ++lane) {
      const std::int64_t r = tile.first_row + row + lane;
      target.scores[r / tile.group * target.token_stride + r % tile.group * target.head_stride +
                    block * target.block_stride] = best[lane];
    }
  }
  /// Lanes = rows row .. row + kLanes - 1, of which those from `first` on need the block.
  MSA_INLINE_PIECE void take(std::int64_t block, std::int64_t row, std::int64_t first,
                             Vec best) const {
    alignas(64) float lanes[kLanes];
    const std::int64_t skip = std::max<std::int64_t>(first - row, 0);
    if (target.scores != nullptr) {
      store(lanes, best);
      return write(block, row, skip, std::min<std::int64_t>(tile.num_rows - row, kLanes), lanes);
    }
    const Vec threshold = load(rows.threshold + row);
    const unsigned passing =
        bits(either(greater(best, threshold), is_nan(threshold))) >> skip << skip;
    if (passing == 0) return;
    store(lanes, best);
    push(block, row, passing, lanes);
  }
};

/// The keys of a block that some row of the tile sees.
struct BlockKeys {
  std::int64_t begin = 0;  // in the request
  std::int64_t size = 0;
};

MSA_INLINE_PIECE BlockKeys keys_of_block(const ScoreTile& tile, const TileRows& rows,
                                         std::int64_t block) {
  const std::int64_t begin = block * tile.request->block_size;
  const std::int64_t seen = rows.visible[tile.num_rows - 1];
  return {begin, std::min(begin + tile.request->block_size, seen) - begin};
}

/// Keys come from memory once per tile. One core gains a quarter where they are contiguous, half
/// where they lie in pages of 32 KB in any order, from asking for data this far ahead (into the
/// second cache) and for its address translation further.
inline constexpr std::int64_t kDataAhead = 32 << 10;
inline constexpr std::int64_t kTouchAhead = 64 << 10;

/// How many keys that is, in whole runs.
constexpr std::int64_t keys_ahead(std::int64_t bytes, std::int64_t row_bytes) {
  return core::ceil_div(bytes / row_bytes, kKeyRun) * kKeyRun;
}

/// Prefetches behind a walk over the keys of one request. Divides once, not in every run.
struct Lookahead {
  const IndexKeys& keys;
  std::int64_t end;  // of the keys that may be read
  std::int64_t row_bytes;
  bool scaled = false;  // in pages, each key with scales of its own: no processor foresees them
  std::int64_t touch_ahead = keys_ahead(kTouchAhead, row_bytes);
  std::int64_t data_ahead = keys_ahead(kDataAhead, row_bytes);
  const std::byte* run = nullptr;

  MSA_INLINE_PIECE void start_run(std::int64_t j) {
    const std::int64_t touch = j + touch_ahead;
    if (touch < end) __builtin_prefetch(keys.key(touch));
    const std::int64_t data = j + data_ahead;
    run = data + kKeyRun <= end ? keys.key(data) : nullptr;
    if (scaled && run != nullptr) {
      const std::byte* scales = keys.scale(data);
      const std::int64_t step = std::max<std::int64_t>(keys.scale_token, 64);
      for (std::int64_t at = 0; at < kKeyRun * keys.scale_token; at += step)
        __builtin_prefetch(scales + at, 0, 2);
    }
  }
  /// Asks for key i of the run ahead: a few at a time beats all at once by a third.
  MSA_INLINE void ask(std::int64_t i) const {
    if (run == nullptr) return;
    const std::byte* row = run + i * keys.token_stride;
    for (std::int64_t at = 0; at < row_bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
  }
  /// For kCount keys from i on, of at most two lines each.
  template <int kCount>
  MSA_INLINE void ask_short(std::int64_t i) const {
    if (run == nullptr) return;
    const std::byte* row = run + i * keys.token_stride;
    for (int n = 0; n < kCount; ++n, row += keys.token_stride) __builtin_prefetch(row, 0, 2);
    if (row_bytes <= 64) return;
    row = run + i * keys.token_stride + 64;
    for (int n = 0; n < kCount; ++n, row += keys.token_stride) __builtin_prefetch(row, 0, 2);
  }
};

template <class K>
MSA_INLINE_PIECE Lookahead look_ahead(const ScoreTile& tile, const TileRows& rows) {
  const std::int64_t end = tile.scattered ? 0 : rows.visible[tile.num_rows - 1];
  return {tile.keys, end, K::S::bytes(tile.dim),
          K::kScaled && tile.keys.scale_token != 0 && tile.keys.page_size != 0};
}

// ---- rows in the lanes ----

// 8 x 2 of 32 registers, 4 x 3 of 16 or of 32 pairs.
inline constexpr int kScoreColumns = kLanes == 16 ? 2 : 3;

/// Queries as [column][word][lane]; lanes behind the last row are zero.
template <class K>
void pack_queries(const ScoreTile& tile, const TileBuffers& buffers) {
  using Word = typename K::P::Word;
  const std::int64_t words = tile.dim / K::P::kPack;
  Word* packed = reinterpret_cast<Word*>(buffers.q);
  alignas(64) Word row[256];
  for (std::int64_t r = 0; r < core::ceil_div(tile.num_rows, kLanes) * kLanes; ++r) {
    if (r < tile.num_rows) {
      pack_query<K>(tile, query_row(tile, r), reinterpret_cast<std::byte*>(row));
    } else {
      std::fill(row, row + words, Word{});
    }
    Word* lane = packed + r / kLanes * words * kLanes + r % kLanes;
    for (std::int64_t w = 0; w < words; ++w) lane[w * kLanes] = row[w];
  }
}

/// Fills buffers.keys with the operand words of each key, repeating the last key up to a whole
/// register tile.
template <class K>
void stage_keys(const ScoreTile& tile, const BlockKeys& block, const TileBuffers& buffers) {
  const std::int64_t bytes = tile.dim / K::P::kPack * 4;
  const auto all = K::scaling_of_all(tile.keys);
  for (std::int64_t j = 0; j < block.size; j += kKeyRun) {
    const std::byte* run = tile.keys.key(block.begin + j);
    const std::byte* scale = K::kScaled ? tile.keys.scale(block.begin + j) : nullptr;
    const std::int64_t end = std::min(j + kKeyRun, block.size);
    for (std::int64_t i = j; i < end; ++i, run += tile.keys.token_stride) {
      if constexpr (K::kDirect) {
        buffers.keys[i] = run;
      } else {
        pack_row<K>(run, tile.dim, buffers.k + i * bytes,
                    K::join(K::scaling(scale + (i - j) * tile.keys.scale_token), all));
        buffers.keys[i] = buffers.k + i * bytes;
      }
    }
  }
  for (std::int64_t i = block.size; i % kTile != 0; ++i)
    buffers.keys[i] = buffers.keys[block.size - 1];
}

template <class P>
MSA_INLINE auto broadcast_word(const std::byte* p) {
  typename P::Word word;
  std::memcpy(&word, p, sizeof word);
  return P::broadcast(&word);
}

/// Raises `best` to the scores of kTile keys. Masked: a lane takes key number `key` only below its
/// limit.
template <class P, int kColumns, bool kMasked>
MSA_INLINE void score_keys(const typename P::Word* q, std::int64_t words,
                           const std::byte* const* keys, std::int32_t key,
                           const std::int32_t* limits, Vec* best) {
  Vec acc[kTile][kColumns];
  for (int m = 0; m < kTile; ++m) {
    for (int c = 0; c < kColumns; ++c) acc[m][c] = zero();
  }
  const std::byte* k[kTile];
  for (int m = 0; m < kTile; ++m) k[m] = keys[m];
  for (std::int64_t w = 0; w < words; ++w) {
    decltype(P::load_lanes(q)) operand[kColumns];
    for (int c = 0; c < kColumns; ++c) operand[c] = P::load_lanes(q + (c * words + w) * kLanes);
    for (int m = 0; m < kTile; ++m) {
      const auto value = broadcast_word<P>(k[m] + w * 4);
      for (int c = 0; c < kColumns; ++c) acc[m][c] = P::step(acc[m][c], operand[c], value);
    }
  }
  for (int c = 0; c < kColumns; ++c) {
    for (int m = 0; m < kTile; ++m) {
      Vec score = acc[m][c];
      if constexpr (kMasked) {
        score = select(igreater(iload(limits + c * kLanes), iset1(key + m)), score, set1(kLowest));
      }
      best[c] = max(score, best[c]);  // a NaN score leaves the second operand
    }
  }
}

/// One block against kColumns columns from `column` on. `first`: the first row that needs the
/// block.
template <class P, int kColumns>
void score_columns(const BlockSink& sink, const TileBuffers& buffers, std::int64_t block,
                   const BlockKeys& keys, std::int64_t column, std::int64_t first,
                   Lookahead* ahead) {
  const ScoreTile& tile = sink.tile;
  const std::int64_t words = tile.dim / P::kPack;
  const auto* q = reinterpret_cast<const typename P::Word*>(buffers.q) + column * words * kLanes;
  const std::int64_t row = column * kLanes;
  Vec best[kColumns];
  for (int c = 0; c < kColumns; ++c) best[c] = set1(kLowest);
  if (sink.rows.visible[std::max(first, row)] >= keys.begin + keys.size) {
    for (std::int64_t j = 0; j < keys.size; j += kTile) {
      if (ahead != nullptr) {
        if (j % kKeyRun == 0) ahead->start_run(keys.begin + j);
        for (int m = 0; m < kTile; ++m) ahead->ask(j % kKeyRun + m);
      }
      score_keys<P, kColumns, false>(q, words, buffers.keys + j, 0, nullptr, best);
    }
  } else {
    alignas(64) std::int32_t limits[kColumns * kLanes];
    for (int i = 0; i < kColumns * kLanes; ++i) {
      limits[i] = static_cast<std::int32_t>(
          std::clamp<std::int64_t>(sink.rows.visible[row + i] - keys.begin, 0, keys.size));
    }
    for (std::int64_t j = 0; j < keys.size; j += kTile) {
      score_keys<P, kColumns, true>(q, words, buffers.keys + j, static_cast<std::int32_t>(j),
                                    limits, best);
    }
  }
  for (int c = 0; c < kColumns; ++c) sink.take(block, row + c * kLanes, first, best[c]);
}

template <class K>
void score_many_rows(const BlockSink& sink, const TileBuffers& buffers) {
  using P = typename K::P;
  const ScoreTile& tile = sink.tile;
  const std::int64_t columns = core::ceil_div(tile.num_rows, kLanes);
  Lookahead ahead = look_ahead<K>(tile, sink.rows);
  bool packed = false;
  std::int64_t first = 0;
  for (std::int64_t block = tile.blocks.begin; block < tile.blocks.end; ++block) {
    while (first < tile.num_rows && sink.rows.end[first] <= block) ++first;
    if (first == tile.num_rows) return;
    if (!packed) pack_queries<K>(tile, buffers);
    packed = true;
    const BlockKeys keys = keys_of_block(tile, sink.rows, block);
    stage_keys<K>(tile, keys, buffers);
    std::int64_t column = first / kLanes;
    Lookahead* asked = &ahead;  // by the first columns
    for (; column + kScoreColumns <= columns; column += kScoreColumns) {
      score_columns<P, kScoreColumns>(sink, buffers, block, keys, column, first, asked);
      asked = nullptr;
    }
    for (; column < columns; ++column) {
      score_columns<P, 1>(sink, buffers, block, keys, column, first, asked);
      asked = nullptr;
    }
  }
}

// ---- head dim in the lanes ----

/// Scores of kLanes / kRows keys for kRows rows: lane = key * kRows + row.
template <class K, int kRows, class Scaling, class All>
MSA_INLINE Vec score_run(const typename K::P::Word* q, std::int64_t dim,
                         const std::byte* const* keys, const Scaling* scaling, const All& all) {
  using P = typename K::P;
  using Dims = typename K::Dims;
  constexpr int kKeys = kLanes / kRows;
  const std::int64_t words = dim / P::kPack;
  typename Dims::Sum acc[kLanes];
  for (int i = 0; i < kLanes; ++i) acc[i] = Dims::zero();
  std::int64_t d = 0;
  for (; d + Dims::kStep <= dim; d += Dims::kStep) {
    decltype(K::operand(keys[0], d, K::join(scaling[0], all))) key[kKeys];
    for (int k = 0; k < kKeys; ++k) key[k] = K::operand(keys[k], d, K::join(scaling[k], all));
    for (int r = 0; r < kRows; ++r) {
      const auto row = Dims::load(q + r * words + d / P::kPack);
      for (int k = 0; k < kKeys; ++k)
        acc[k * kRows + r] = Dims::step(acc[k * kRows + r], row, key[k]);
    }
  }
  if constexpr (Dims::kStep > 16) {
    if (d < dim) {  // half a step of bfloats: dims are multiples of 16
      for (int r = 0; r < kRows; ++r) {
        const auto row = P::load_half(q + r * words + d / P::kPack);
        for (int k = 0; k < kKeys; ++k)
          acc[k * kRows + r] = P::step(acc[k * kRows + r], row, P::load_half(keys[k] + d * 2));
      }
    }
  }
  return Dims::sum_each(acc);
}

/// What each lane may take of a block: keys whose number, less the lane's own, is below it.
template <int kRows>
MSA_INLINE_PIECE void set_limits(const BlockSink& sink, const BlockKeys& block,
                                 std::int32_t* limits) {
  for (int i = 0; i < kLanes; ++i) {
    const std::int64_t sees = i % kRows < sink.tile.num_rows ? sink.rows.visible[i % kRows] : 0;
    limits[i] =
        static_cast<std::int32_t>(std::clamp<std::int64_t>(sees - block.begin, 0, block.size)) -
        i / kRows;
  }
}

/// Best scores of one block: lane = key * kRows + row, keys modulo kLanes / kRows.
template <class K, int kRows>
Vec score_few_block(const BlockSink& sink, const TileBuffers& buffers, const BlockKeys& block,
                    bool masked, Lookahead& ahead) {
  constexpr int kKeys = kLanes / kRows;
  const auto* q = reinterpret_cast<const typename K::P::Word*>(buffers.q);
  const IndexKeys& keys = sink.tile.keys;
  alignas(64) std::int32_t limits[kLanes];
  if (masked) set_limits<kRows>(sink, block, limits);
  const auto all = K::scaling_of_all(keys);
  Vec best = set1(kLowest);
  for (std::int64_t j = 0; j < block.size; j += kKeyRun) {
    const std::byte* run = keys.key(block.begin + j);
    const std::byte* scale = K::kScaled ? keys.scale(block.begin + j) : nullptr;
    ahead.start_run(block.begin + j);
    const std::int64_t last = std::min(kKeyRun, block.size - j) - 1;
    for (std::int64_t i = 0; i <= last; i += kKeys) {
      const std::byte* key[kKeys];
      decltype(K::scaling(scale)) scaling[kKeys];
      for (int k = 0; k < kKeys; ++k) {
        const std::int64_t at = std::min(i + k, last);
        key[k] = run + at * keys.token_stride;
        scaling[k] = K::scaling(scale + at * keys.scale_token);
      }
      // Apart from the loop above, which so is unrolled.
      for (int k = 0; k < kKeys; ++k) ahead.ask(i + k);
      Vec score = score_run<K, kRows>(q, sink.tile.dim, key, scaling, all);
      if (masked) {
        score = select(igreater(iload(limits), iset1(static_cast<std::int32_t>(j + i))), score,
                       set1(kLowest));
      }
      best = max(score, best);
    }
  }
  return best;
}

// Groups of codes: their values are looked up and meet all rows at once. A processor looks some 64
// instructions ahead. Sums that wait for the last products would fill that, and nothing else would
// run: so only their first step follows the products of their keys, and the others come behind the
// first group of the next keys.

inline constexpr std::int64_t kGroupBytes = 32;  // 16 elements of a query

/// A walk over the groups of kLanes / kRows keys that lie at one stride.
struct GroupWalk {
  const std::byte* q;  // [group, row] of kGroupBytes
  const std::uint8_t* codes;
  const std::uint8_t* scales;
  std::int64_t token_stride;
  std::int64_t scale_token;
};

/// Products of the next `count` groups: acc[key * kRows + row].
template <class Dims, int kRows>
MSA_INLINE void add_groups(const IndexKeys& keys, GroupWalk& walk, std::int64_t count,
                           typename Dims::Sum* acc) {
  constexpr int kKeys = kLanes / kRows;
  for (std::int64_t n = 0; n < count; ++n) {
    typename Dims::Operand key[kKeys];
    for (int k = 0; k < kKeys; ++k) {
      const GroupValues& group = keys.groups[walk.scales[k * walk.scale_token]];
      key[k] = Dims::values(walk.codes + k * walk.token_stride, group.halves.data());
    }
    for (int r = 0; r < kRows; ++r) {
      const auto row = Dims::load(reinterpret_cast<const std::uint32_t*>(walk.q + r * kGroupBytes));
      for (int k = 0; k < kKeys; ++k)
        acc[k * kRows + r] = Dims::step(acc[k * kRows + r], row, key[k]);
    }
    walk.q += kRows * kGroupBytes;
    walk.codes += 8;
    walk.scales += keys.scale_group;
  }
}

/// What score_few_block does, over groups of codes.
template <class K, int kRows>
MSA_PIECE Vec score_few_groups(const BlockSink& sink, const TileBuffers& buffers,
                               const BlockKeys& block, bool masked, Lookahead& ahead) {
  using Dims = typename K::Dims;
  constexpr int kKeys = kLanes / kRows;
  const IndexKeys& keys = sink.tile.keys;
  const std::int64_t groups = sink.tile.dim / 16;
  alignas(64) std::int32_t limits[kLanes];
  if (masked) set_limits<kRows>(sink, block, limits);
  Vec best = set1(kLowest);
  typename Dims::Sum kept[Dims::kKept];
  std::int64_t kept_key = -1;  // the first key of `kept`
  const auto take_kept = [&] {
    Vec score = Dims::finish(kept);
    if (masked) {
      score = select(igreater(iload(limits), iset1(static_cast<std::int32_t>(kept_key))), score,
                     set1(kLowest));
    }
    best = max(score, best);
  };
  for (std::int64_t j = 0; j < block.size; j += kKeyRun) {
    const auto* codes = reinterpret_cast<const std::uint8_t*>(keys.key(block.begin + j));
    const auto* scales = reinterpret_cast<const std::uint8_t*>(keys.scale(block.begin + j));
    ahead.start_run(block.begin + j);
    const std::int64_t end = std::min(j + kKeyRun, block.size);
    // Otherwise keys come one by one, each in all places.
    const bool whole = (end - j) % kKeys == 0;
    for (std::int64_t i = j; i < end; i += whole ? kKeys : 1) {
      if (whole) ahead.ask_short<kKeys>(i - j);
      GroupWalk walk{.q = buffers.q,
                     .codes = codes + (i - j) * keys.token_stride,
                     .scales = scales + (i - j) * keys.scale_token,
                     .token_stride = whole ? keys.token_stride : 0,
                     .scale_token = whole ? keys.scale_token : 0};
      typename Dims::Sum acc[kLanes];
      for (int n = 0; n < kLanes; ++n) acc[n] = Dims::zero();
      add_groups<Dims, kRows>(keys, walk, 1, acc);
      if (kept_key >= 0) take_kept();
      add_groups<Dims, kRows>(keys, walk, groups - 1, acc);
      Dims::fold(acc, kept);
      kept_key = i;
    }
  }
  take_kept();
  return best;
}

// Where the level has bounds of groups' scores, keys whose bounds show that no row takes them are
// not scored: the threshold that a block has to pass is known once a row's list is full.

using ScoreGroups = Vec (*)(const BlockSink&, const TileBuffers&, const BlockKeys&, bool masked,
                            Lookahead&);

/// Of keys that bounds know nothing of.
struct Unbounded {
  Unbounded(const BlockSink&, std::int64_t, ScoreGroups) {}
  static bool update(const BlockSink&, const BlockKeys&) { return false; }
  static Vec score_block(const BlockSink&, const TileBuffers&, const BlockKeys&, Lookahead&) {
    return set1(kLowest);
  }
};

/// What bounds need of a tile's rows; one kernel serves one row, one up to four.
template <class K>
struct BoundedRows {
  using Bounds = typename K::Dims::Bounds;

  const GroupBytes* values = nullptr;  // null: bounds tell nothing of these keys
  std::int64_t num_rows;               // with padding
  std::int64_t at_once = num_rows == 1 ? 1 : Bounds::kRows;
  ScoreGroups score;  // of this number of rows
  typename Bounds::Row bytes[kFewRows];
  alignas(64) float limits[kFewRows / Bounds::kRows][kLanes];  // lane 4 c + k: of row c
  float units[kFewRows];
  float thresholds[kFewRows];  // that limits are of

  [[gnu::noinline]] BoundedRows(const BlockSink& sink, std::int64_t padded, ScoreGroups all)
      : num_rows(padded), score(all) {
    const ScoreTile& tile = sink.tile;
    if (tile.dim != Bounds::kDim || sink.target.scores != nullptr || tile.keys.scale_group != 1)
      return;
    const bool rounded = tile.keys.groups == kRoundedProducts.data();
    const GroupBytes& table = rounded ? kRoundedProductBytes : kProductBytes;
    std::fill_n(limits[0], sizeof limits / sizeof(float), kTakeNone);
    for (std::int64_t r = 0; r < kFewRows; ++r) {
      const bool there = r < tile.num_rows && sink.rows.threshold[r] != kTakeNone;
      alignas(64) std::uint16_t halves[256] = {};
      if (there) pack_query<K>(tile, query_row(tile, r), reinterpret_cast<std::byte*>(halves));
      if (!set_row(halves, r, table.error) && there) return;
      thresholds[r] = kTakeAll;
    }
    values = &table;
  }

  /// Row r in bytes; whether it is neither 0 nor so small or large that sums might not be what they
  /// are. Of the values of a key c times a unit, c off by at most `error`, a group's sum of q c is
  /// at most the start's share of the unit's more than the products of bytes.
  bool set_row(const std::uint16_t* halves, std::int64_t r, float error) {
    float largest = 0;
    bool finite = true;
    for (std::int64_t d = 0; d < Bounds::kDim; ++d) {
      const float size = std::fabs(bf16_to_float(halves[d]));
      finite = finite && size <= 0x1p60f;
      largest = std::max(largest, size);
    }
    const bool served = finite && largest >= 0x1p-60f;
    units[r] = served ? largest / 127 : 1.0f;
    // What scoring the keys may round, and numbers below 2^-126 that it may take for zero; what
    // the sums below may.
    constexpr float kRounded = (Bounds::kDim + 64) * 0x1p-23f, kSumsRounded = 20;
    for (std::int64_t g = 0; g < Bounds::kGroups; ++g) {
      std::int32_t sum = 0;
      float sizes = 0, rest = 0;
      for (std::int64_t i = 0; i < 16; ++i) {
        const float share = served ? bf16_to_float(halves[g * 16 + i]) / units[r] : 0.0f;
        const float code = std::clamp(std::nearbyint(share), -127.0f, 127.0f);
        bytes[r].set_code(g, i, static_cast<std::int8_t>(code));
        sum += static_cast<std::int32_t>(code);
        sizes += std::fabs(code);
        rest += std::fabs(share - code) + 0x1p-16f;
      }
      const float slack = error * sizes + 127.5f * rest + kRounded * 127.5f * (sizes + rest);
      bytes[r].set_start(g, Bounds::kBaseBits - Bounds::kShift * sum +
                                static_cast<std::int32_t>(std::ceil(slack + kSumsRounded)));
    }
    return served;
  }

  /// Whether thresholds of all rows are known, that is whether keys of a block may be left out.
  [[gnu::noinline]] bool update(const BlockSink& sink, const BlockKeys& keys) {
    const TileRows& rows = sink.rows;
    sink.settle();
    const bool whole_runs = keys.size % kKeyRun == 0;  // the last block may end anywhere
    if (values == nullptr || !whole_runs) return false;
    for (std::int64_t r = 0; r < num_rows; ++r) {
      const float threshold = rows.threshold[r];
      if (threshold == thresholds[r]) continue;
      if (std::isnan(threshold)) return false;
      const float limit = threshold / units[r];
      const float outwards =
          threshold == kTakeNone ? kTakeNone : limit - std::fabs(limit) * 0x1p-20f;
      const std::int64_t lanes = kLanes / at_once;
      std::fill_n(limits[r / Bounds::kRows] + r % at_once * lanes, lanes, outwards);
      thresholds[r] = threshold;
    }
    return true;
  }

  Vec score_block(const BlockSink& sink, const TileBuffers& buffers, const BlockKeys& keys,
                  Lookahead& ahead) const {
    return score_bounded_groups(sink, buffers, keys, *this, ahead);
  }
};

/// Bit i: some row may take key i of the run of 16 at `run`.
template <class Rows, int kAtOnce>
MSA_PIECE std::uint32_t keys_above(const Rows& rows, const std::byte* run, std::int64_t stride,
                                   const std::uint8_t* scales, const Lookahead& ahead) {
  using Bounds = typename Rows::Bounds;
  std::uint32_t above = 0;
  for (std::int64_t i = 0; i < kKeyRun; i += Bounds::kKeys) {
    ahead.ask_short<Bounds::kKeys>(i);
    for (std::int64_t r = 0; r < rows.num_rows; r += kAtOnce) {
      above |= Bounds::template above<kAtOnce>(*rows.values, run + i * stride, stride,
                                               scales + i * Bounds::kGroups, rows.bytes + r,
                                               rows.limits[r / kAtOnce])
               << i;
    }
  }
  return above;
}

/// What score_few_groups does of whole runs that all rows see, for rows whose thresholds are known:
/// no score of a row above its threshold is left out.
template <class K>
MSA_PIECE Vec score_bounded_groups(const BlockSink& sink, const TileBuffers& buffers,
                                   const BlockKeys& block, const BoundedRows<K>& rows,
                                   Lookahead& ahead) {
  using Rows = BoundedRows<K>;
  constexpr std::int64_t kGroups = Rows::Bounds::kGroups;
  const IndexKeys& keys = sink.tile.keys;
  const std::int64_t step = kLanes / rows.num_rows;
  Lookahead asked = ahead;  // of keys that are there
  asked.end = 0;
  Vec best = set1(kLowest);
  for (std::int64_t j = block.begin; j < block.begin + block.size; j += kKeyRun) {
    const std::byte* run = keys.key(j);
    const auto* scales = reinterpret_cast<const std::uint8_t*>(keys.scale(j));
    ahead.start_run(j);
    alignas(64) std::uint8_t gathered[kKeyRun * kGroups];
    if (keys.scale_token != kGroups) {
      for (std::int64_t i = 0; i < kKeyRun; ++i)
        std::memcpy(gathered + i * kGroups, scales + i * keys.scale_token, kGroups);
      scales = gathered;
    }
    std::uint32_t above =
        rows.at_once == 1
            ? keys_above<Rows, 1>(rows, run, keys.token_stride, scales, ahead)
            : keys_above<Rows, Rows::Bounds::kRows>(rows, run, keys.token_stride, scales, ahead);
    while (above != 0) {
      const std::int64_t i = std::countr_zero(above) / step * step;
      above &= ~(((1u << step) - 1) << i);
      best = max(rows.score(sink, buffers, {j + i, step}, false, asked), best);
    }
  }
  return best;
}

/// Queries as [row, word], of groups of codes as [group, row]; rows behind the last are zero.
template <class K, int kRows>
void pack_few_queries(const ScoreTile& tile, const TileBuffers& buffers) {
  const std::int64_t row_bytes = tile.dim / K::P::kPack * 4;
  std::memset(buffers.q, 0, static_cast<std::size_t>(kRows * row_bytes));
  for (std::int64_t r = 0; r < tile.num_rows; ++r) {
    if constexpr (K::kGroups) {
      alignas(64) std::byte row[256 * 2];
      pack_query<K>(tile, query_row(tile, r), row);
      for (std::int64_t g = 0; g < tile.dim / 16; ++g) {
        K::Dims::turn(row + g * kGroupBytes);
        std::memcpy(buffers.q + (g * kRows + r) * kGroupBytes, row + g * kGroupBytes, kGroupBytes);
      }
    } else {
      pack_query<K>(tile, query_row(tile, r), buffers.q + r * row_bytes);
    }
  }
}

template <class K, int kRows>
constexpr ScoreGroups score_of_groups() {
  if constexpr (K::kGroups) {
    return &score_few_groups<K, kRows>;
  } else {
    return nullptr;
  }
}

/// Bounds of keys in groups where this file's level has them.
template <class K>
struct BoundsOf {
  using Rows = Unbounded;
};
template <class K>
requires(K::kGroups && sizeof(typename K::Dims::Bounds) != 0) struct BoundsOf<K> {
  using Rows = BoundedRows<K>;
};

/// `wanted(block, first)`: whether the block is scored.
template <class K, int kRows, class Wanted>
void score_few_rows(const BlockSink& sink, const TileBuffers& buffers, const Wanted& wanted) {
  const ScoreTile& tile = sink.tile;
  pack_few_queries<K, kRows>(tile, buffers);
  Lookahead ahead = look_ahead<K>(tile, sink.rows);
  typename BoundsOf<K>::Rows bounded(sink, kRows, score_of_groups<K, kRows>());
  std::int64_t first = 0;
  for (std::int64_t block = tile.blocks.begin; block < tile.blocks.end; ++block) {
    while (first < tile.num_rows && sink.rows.end[first] <= block) ++first;
    if (first == tile.num_rows) return;
    if (!wanted(block, first)) continue;
    const BlockKeys keys = keys_of_block(tile, sink.rows, block);
    const bool masked = sink.rows.visible[first] < keys.begin + keys.size;
    alignas(64) float scores[kLanes];
    if constexpr (K::kGroups) {
      const bool leave_out = !masked && bounded.update(sink, keys);
      store(scores, leave_out ? bounded.score_block(sink, buffers, keys, ahead)
                              : score_few_groups<K, kRows>(sink, buffers, keys, masked, ahead));
    } else {
      store(scores, score_few_block<K, kRows>(sink, buffers, keys, masked, ahead));
    }
    for (int i = kRows; i < kLanes; ++i) scores[i % kRows] = std::max(scores[i % kRows], scores[i]);
    for (int i = kRows; i < kLanes; ++i) scores[i] = kLowest;
    sink.take(block, 0, first, load(scores));
  }
}

// ---- the way in ----

/// At most kFewRows rows.
template <class K, class Wanted>
void score_few(const BlockSink& sink, const TileBuffers& buffers, const Wanted& wanted) {
  const std::int64_t rows = sink.tile.num_rows;
  if (rows <= 1) return score_few_rows<K, 1>(sink, buffers, wanted);
  // With bounds few keys are scored: two rows share the kernels of four, which keeps wheels small.
  if constexpr (std::is_same_v<typename BoundsOf<K>::Rows, Unbounded>) {
    if (rows <= 2) return score_few_rows<K, 2>(sink, buffers, wanted);
  }
  if (rows <= 4) return score_few_rows<K, 4>(sink, buffers, wanted);
  return score_few_rows<K, 8>(sink, buffers, wanted);
}

template <class K>
void score_tile_as(const BlockSink& sink, const TileBuffers& buffers) {
  if (!sink.tile.few_rows) return score_many_rows<K>(sink, buffers);
  score_few<K>(sink, buffers, [](std::int64_t, std::int64_t) { return true; });
}

/// What does not multiply pairs of bf16 goes to the level below, where this one adds them.
template <class Bf16>
void score_tile_on(const ScoreTile& tile, const TileRows& rows, const TileBuffers& buffers,
                   const ScoreTarget& target) {
  const BlockSink sink{tile, rows, target};
  if constexpr (Bf16::kPack == 2) {
    if (tile.key_dtype == DType::BF16) return score_tile_as<KeysIn<DType::BF16>>(sink, buffers);
    if (tile.key_dtype == DType::E2M1 && tile.pairs)
      return score_tile_as<KeysIn<DType::E2M1, Bf16>>(sink, buffers);
    Bf16::level_of_floats().select.score_tile(tile, rows, buffers, target);
  } else {
    if (tile.key_dtype == DType::E4M3) return score_tile_as<KeysIn<DType::E4M3>>(sink, buffers);
    if (tile.key_dtype == DType::E2M1) return score_tile_as<KeysIn<DType::E2M1>>(sink, buffers);
    with_storage(tile.key_dtype, [&](auto storage) {
      score_tile_as<KeysIn<decltype(storage)::kType>>(sink, buffers);
    });
  }
}

inline void score_tile(const ScoreTile& tile, const TileRows& rows, const TileBuffers& buffers,
                       const ScoreTarget& target) {
  score_tile_on<ProductsOfBf16>(tile, rows, buffers, target);
}

}  // namespace selection
