// SPDX-License-Identifier: MIT
// The two products of attention by tiles, and the table of a level that has them. Included behind
// tiles.inl and attend.inl. A tile of scores is [16 keys][16 rows], keys where they lie or packed
// and queries as other levels pack them, so that the softmax is theirs. Weights are turned to
// [16 rows][32 keys] and meet strips of values; O is [rows][dims].

template <class P, int Cols, bool Masked>
requires Tiled<P> MSA_INLINE void score_block(const AttendContext<P>& c,
                                              const std::int64_t (&column)[Cols],
                                              const Block<P>& block, std::int64_t keys,
                                              const Ahead& ahead, Vec (&best)[Cols]) {
  constexpr int kRuns = 4 / Cols;  // of 16 keys
  const std::byte* q[Cols];
  IVec limit[Cols];
  for (int col = 0; col < Cols; ++col) {
    q[col] = reinterpret_cast<const std::byte*>(c.q + column[col] * c.q_column);
    limit[col] = iload(c.limits + column[col] * kLanes);
    best[col] = set1(-kInfinity);
  }
  const std::int64_t steps = c.k_words / kKeyWords<P>;
  Touch touch(ahead.keys, ahead.count, ahead.key_bytes, (keys + 16 * kRuns - 1) / (16 * kRuns), 1);
  std::int64_t key = 0, taken = 0;
  const auto take = [&](std::int64_t end) {
    for (; taken < end; ++taken) {
      for (int col = 0; col < Cols; ++col) {
        Vec score = load(c.s + (taken * Cols + col) * kLanes);
        if constexpr (Masked) {
          const Mask seen = igreater(limit[col], iset1(static_cast<std::int32_t>(taken)));
          score = select(seen, score, set1(-kInfinity));
        }
        best[col] = max(score, best[col]);
      }
    }
  };
  const auto score_runs = [&]<int kCount>() {
    TileRows16 rows[kCount];
    for (int i = 0; i < kCount; ++i) {
      const auto* first = block.keys + (key + 16 * i) * block.row;
      rows[i] = {reinterpret_cast<const std::byte*>(first), 4 * block.row, kTileRow};
    }
    repeat<kCount * Cols>([]<int t>() { Tiles::clear<t>(); });
    multiply_tiles<false, kCount, Cols>(rows, q, steps);
    touch.next_product();
    touch.all();
    take(key);  // those before, while these are multiplied
    store_tiles<kCount, Cols>(c.s + key * Cols * kLanes);
    key += 16 * kCount;
  };
  while (key + 16 * kRuns <= keys) score_runs.template operator()<kRuns>();
  while (key < keys) score_runs.template operator()<1>();
  take(keys);
}

/// Weights of a column, [key pairs][rows], to [32 keys][rows][key pairs]; zeros behind the last.
template <class P>
MSA_INLINE void turn_weights(typename P::Word* p, std::int64_t keys) {
  const std::int64_t written = round_up(keys, kScored<P>) / 2, end = round_up(keys, 32) / 2;
  std::fill(p + written * kLanes, p + end * kLanes, 0u);
  for (std::int64_t pair = 0; pair < end; pair += 16) {
    auto* words = reinterpret_cast<Bits*>(p + pair * kLanes);
    transpose_words(words, kLanes, words, kLanes);
  }
}

/// O = O alpha of one column. Maxima seldom move.
MSA_INLINE_PIECE void shrink_rows(float* o, Vec alpha, std::int64_t dims) {
  if (bits(equal(alpha, set1(1.0f))) == (1u << kLanes) - 1) return;
  float factor[kLanes];
  store(factor, alpha);
  for (int row = 0; row < kLanes; ++row, o += dims) {
    const Vec a = set1(factor[row]);
    for (std::int64_t d = 0; d < dims; d += kLanes) store(o + d, mul(load(o + d), a));
  }
}

template <class P, int Cols>
requires Tiled<P> MSA_INLINE_PIECE void weigh_values(const AttendContext<P>& c,
                                                     const std::int64_t (&column)[Cols],
                                                     const Block<P>&, const Vec (&alpha)[Cols],
                                                     std::int64_t keys, const Ahead& ahead) {
  constexpr int kStrips = 4 / Cols;  // of 16 dims
  const std::int64_t dims = c.call.value_dim, steps = (keys + 31) / 32;
  TileRows16 weights[Cols];
  float* o[Cols];
  for (int col = 0; col < Cols; ++col) {
    typename P::Word* p = c.p + col * c.p_column;
    o[col] = c.state.o + column[col] * dims * kLanes;
    turn_weights<P>(p, keys);
    shrink_rows(o[col], alpha[col], dims);
    weights[col] = {reinterpret_cast<const std::byte*>(p), kTileRow, kTileBytes};
  }
  Touch touch(ahead.values, ahead.count, ahead.value_bytes,
              (dims + 16 * kStrips - 1) / (16 * kStrips), 1);
  std::int64_t d = 0;
  const auto weigh_strips = [&]<int kCount>() {
    const std::byte* values[kCount];
    for (int i = 0; i < kCount; ++i)
      values[i] = reinterpret_cast<const std::byte*>(c.v + (d / kLanes + i) * c.strip);
    repeat<Cols * kCount>(
        [&]<int t>() { Tiles::load<t>(o[t / kCount] + d + t % kCount * kLanes, 4 * dims); });
    multiply_tiles<false, Cols, kCount>(weights, values, steps);
    touch.next_product();
    touch.all();
    repeat<Cols * kCount>(
        [&]<int t>() { Tiles::store<t>(o[t / kCount] + d + t % kCount * kLanes, 4 * dims); });
    d += kLanes * kCount;
  };
  while (d + kLanes * kStrips <= dims) weigh_strips.template operator()<kStrips>();
  while (d < dims) weigh_strips.template operator()<1>();
}

/// Whether a request's products are tiles: by its own shape alone, so that its bits do not depend
/// on what runs beside it.
inline bool by_tiles(const AttendCall& call, const AttendTile& tile) {
  return call.pairs && tile.request.seqlen_q * call.group >= LevelBelow::kRowsForTiles;
}

/// The kernels of what is no tile: of this level's vectors where those below have other lanes, else
/// through the table below, of which nothing is known yet where this one is made.
constexpr AttendKernels kernels_below() {
  if constexpr (LevelBelow::kHasOtherLanes) {
    return attend_kernels();
  } else {
    return {.lanes = kLanes,
            .attend =
                [](const AttendCall& call, const AttendTile& tile, const AttendScratch& scratch,
                   const AttendState* states) {
                  LevelBelow::kernels().attend.attend(call, tile, scratch, states);
                },
            .merge =
                [](const AttendCall& call, const AttendTile& tile, const AttendState& into,
                   const AttendState& from) {
                  LevelBelow::kernels().attend.merge(call, tile, into, from);
                },
            .finish =
                [](const AttendCall& call, const AttendTile& tile, const AttendScratch& scratch,
                   const AttendState& state, std::int32_t* suspects) {
                  return LevelBelow::kernels().attend.finish(call, tile, scratch, state, suspects);
                },
            .overflows =
                [](const AttendCall& call, const AttendTile& tile, const AttendScratch& scratch,
                   const AttendState& state) {
                  return LevelBelow::kernels().attend.overflows(call, tile, scratch, state);
                }};
  }
}

inline void attend_by_tiles(const AttendCall& call, const AttendTile& tile,
                            const AttendScratch& scratch, const AttendState* states) {
  if (!by_tiles(call, tile)) return kernels_below().attend(call, tile, scratch, states);
  const Tiles tiles;
  with_keys(call.kv_dtype, [&](auto storage) {
    using S = decltype(storage);
    if constexpr (!std::is_same_v<S, StoredAs<DType::F32>> &&
                  !std::is_same_v<S, StoredAs<DType::F16>>)
      attend_tile<TileProducts, S>(call, tile, scratch, states);
  });
}

constexpr AttendKernels tile_attend_kernels() {
  AttendKernels kernels = kernels_below();
  kernels.tile = kWeighed<TileProducts>;
  kernels.words_of_bf16 = TileProducts::kPack;
  kernels.attend = attend_by_tiles;
  return kernels;
}
