// SPDX-License-Identifier: MIT
// Attention by tiles, and the table of a level that has them. Included behind tiles.inl and
// attend.inl. A tile of scores is [16 keys][16 rows], keys where they lie or packed and queries as
// other levels pack them, so that the softmax is theirs. Weights are turned to [16 rows][32 keys]
// and meet strips of values; O is [rows][dims]. The unit that multiplies tiles works beside the
// vectors: while the weights of one column are computed, the products of the column before and of
// the one behind are handed to it, four at a time.

/// A column of the tile and the keys of the block in hand that some row of it sees.
struct SeenColumn {
  std::int64_t column = 0;
  std::int64_t keys = 0;
  bool masked = false;  // not all rows see them, or they are no whole tiles
};

template <class P>
MSA_INLINE_PIECE SeenColumn seen_column(const AttendContext<P>& c, std::int64_t column) {
  const std::int32_t* limits = c.limits + column * kLanes;
  const auto [least, most] = std::minmax_element(limits, limits + kLanes);
  return {column, *most, *least != *most || *most % kScored<P> != 0};
}

/// The scores of one column to s, [keys][rows].
template <class P>
class ScoreSteps {
 public:
  ScoreSteps() = default;
  ScoreSteps(const AttendContext<P>& c, const Block<P>& block, const SeenColumn& column, float* s)
      : q_(reinterpret_cast<const std::byte*>(c.q + column.column * c.q_column)),
        key_(reinterpret_cast<const std::byte*>(block.keys)),
        stride_(4 * block.row),
        tiles_(round_up(column.keys, 16) / 16),
        steps_(c.k_words / kKeyWords<P>),
        s_(s) {}

  std::int64_t left() const { return (tiles_ + 3) / 4 * steps_ - step_; }
  MSA_INLINE void advance() {
    const std::int64_t count = std::min<std::int64_t>(tiles_, 4);
    if (step_ == 0) repeat<4>([]<int t>() { Tiles::clear<t>(); });
    Tiles::load<6>(q_ + step_ * kTileBytes, kTileRow);
    repeat<4>([&]<int t>() {
      if (t >= count) return;
      Tiles::load<4 + t % 2>(key_ + t * 16 * stride_ + step_ * kTileRow, stride_);
      Tiles::add_pairs<t, 4 + t % 2, 6>();
    });
    if (++step_ < steps_) return;
    repeat<4>([&]<int t>() {
      if (t < count) Tiles::store<t>(s_ + t * 256, kTileRow);
    });
    step_ = 0;
    tiles_ -= count;
    key_ += 64 * stride_;
    s_ += 4 * 256;
  }

 private:
  const std::byte* q_ = nullptr;
  const std::byte* key_ = nullptr;
  std::int64_t stride_ = 0;  // bytes from key to key
  std::int64_t tiles_ = 0;   // of 16 keys, still to come
  std::int64_t steps_ = 1;   // of 32 dims
  float* s_ = nullptr;
  std::int64_t step_ = 0;
};

/// O += P V of one column, whose weights are p: [32 keys][rows][key pairs].
template <class P>
class WeighSteps {
 public:
  WeighSteps() = default;
  WeighSteps(const AttendContext<P>& c, const SeenColumn& column, const typename P::Word* p)
      : p_(reinterpret_cast<const std::byte*>(p)),
        v_(reinterpret_cast<const std::byte*>(c.v)),
        strip_(4 * c.strip),
        strips_(c.call.value_dim / 16),
        steps_((column.keys + 31) / 32),
        o_(c.state.o + column.column * c.call.value_dim * kLanes),
        stride_(4 * c.call.value_dim) {}

  std::int64_t left() const { return (strips_ + 3) / 4 * steps_ - step_; }
  MSA_INLINE void advance() {
    const std::int64_t count = std::min<std::int64_t>(strips_, 4);
    if (step_ == 0) {
      repeat<4>([&]<int t>() {
        if (t < count) Tiles::load<t>(o_ + t * 16, stride_);
      });
    }
    Tiles::load<4>(p_ + step_ * kTileBytes, kTileRow);
    repeat<4>([&]<int t>() {
      if (t >= count) return;
      Tiles::load<6 + t % 2>(v_ + t * strip_ + step_ * kTileBytes, kTileRow);
      Tiles::add_pairs<t, 4, 6 + t % 2>();
    });
    if (++step_ < steps_) return;
    repeat<4>([&]<int t>() {
      if (t < count) Tiles::store<t>(o_ + t * 16, stride_);
    });
    step_ = 0;
    strips_ -= count;
    v_ += 4 * strip_;
    o_ += 4 * 16;
  }

 private:
  const std::byte* p_ = nullptr;
  const std::byte* v_ = nullptr;
  std::int64_t strip_ = 0;   // bytes from strip to strip
  std::int64_t strips_ = 0;  // of 16 dims, still to come
  std::int64_t steps_ = 1;   // of 32 keys
  float* o_ = nullptr;
  std::int64_t stride_ = 0;  // bytes from row to row
  std::int64_t step_ = 0;
};

/// What the tiles do while a column's weights are computed: the column before it is weighed, the
/// one behind it scored. Both use the same registers, so one after the other. In equal parts.
template <class P>
class Beside {
 public:
  Beside(const WeighSteps<P>& before, const ScoreSteps<P>& after, std::int64_t parts)
      : before_(before), after_(after), parts_(parts), all_(before.left() + after.left()) {}

  MSA_INLINE void part() {
    ++part_;
    run(all_ * part_ / parts_);
  }
  MSA_INLINE void rest() { run(all_); }

 private:
  MSA_INLINE void run(std::int64_t until) {
    for (; done_ < until; ++done_) {
      if (before_.left() > 0) {
        before_.advance();
      } else {
        after_.advance();
      }
    }
  }

  WeighSteps<P> before_;
  ScoreSteps<P> after_;
  std::int64_t parts_;
  std::int64_t all_;
  std::int64_t part_ = 0, done_ = 0;
};

inline constexpr std::int64_t kKeysOfPart = 8;

/// The largest scores of a column.
template <bool Masked>
MSA_INLINE Vec largest_scores(const float* s, std::int64_t keys, IVec limit) {
  Vec best = set1(-kInfinity);
  for (std::int64_t key = 0; key < keys; ++key) {
    Vec score = load(s + key * kLanes);
    if constexpr (Masked) {
      const Mask seen = igreater(limit, iset1(static_cast<std::int32_t>(key)));
      score = select(seen, score, set1(-kInfinity));
    }
    best = max(score, best);
  }
  return best;
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

/// From scores s to weights p of one column, turned, and its O shrunk.
template <class P, bool Masked>
MSA_INLINE_PIECE void weights_of(const AttendContext<P>& c, const Block<P>& block,
                                 const SeenColumn& column, float* s, typename P::Word* p,
                                 const Ahead& ahead, Beside<P>& beside) {
  const std::int64_t keys = round_up(column.keys, 16);
  const Vec best = largest_scores<Masked>(s, keys, iload(c.limits + column.column * kLanes));
  if (c.call.block_max != nullptr) write_block_max(c, column.column, block.id, best);
  if (!c.call.attend) return;
  const auto turn = [&](std::int64_t pair) {
    auto* words = reinterpret_cast<Bits*>(p + pair * kLanes);
    transpose_words(words, kLanes, words, kLanes);
  };
  const Vec alpha =
      update_softmax<P, 1, Masked>(c, column.column, best, s, p, keys, [&](std::int64_t done) {
        if (done % kKeysOfPart != 0) return;
        beside.part();
        const std::int64_t from = ahead.count * (done - kKeysOfPart) / keys,
                           to = ahead.count * done / keys;
        prefetch_rows(ahead.keys, from, to, ahead.key_bytes);
        prefetch_rows(ahead.values, from, to, ahead.value_bytes);
        if (done % 32 == 0) turn((done - 32) / 2);
      });
  if (keys % 32 != 0) {
    std::fill(p + keys / 2 * kLanes, p + (keys / 2 + 8) * kLanes, 0u);
    turn((keys - 16) / 2);
  }
  shrink_rows(c.state.o + column.column * c.call.value_dim * kLanes, alpha, c.call.value_dim);
}

template <class P>
requires Tiled<P>
inline void visit_active(const AttendContext<P>& c, std::int64_t active, const Block<P>& block,
                         Ahead ahead) {
  const std::int64_t side = round_up(c.call.step, kWeighed<P>) * kLanes;
  SeenColumn column = seen_column(c, c.active[0]);
  WeighSteps<P> weighing;
  ScoreSteps<P> scoring(c, block, column, c.s);
  while (scoring.left() > 0) scoring.advance();
  for (std::int64_t i = 0; i < active; ++i) {
    float* s = c.s + i % 2 * side;
    typename P::Word* p = c.p + i % 2 * c.p_column;
    SeenColumn next;
    scoring = {};
    if (i + 1 < active) {
      next = seen_column(c, c.active[i + 1]);
      scoring = {c, block, next, c.s + (i + 1) % 2 * side};
    }
    Beside<P> beside(weighing, scoring, round_up(column.keys, 16) / kKeysOfPart);
    if (column.masked) {
      weights_of<P, true>(c, block, column, s, p, ahead, beside);
    } else {
      weights_of<P, false>(c, block, column, s, p, ahead, beside);
    }
    beside.rest();
    if (c.call.attend) weighing = {c, column, p};
    column = next;
    ahead = {};  // once is enough
  }
  while (weighing.left() > 0) weighing.advance();
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
