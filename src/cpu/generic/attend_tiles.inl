// SPDX-License-Identifier: MIT
// Attention by tiles, and the table of a level that has them. Included behind tiles.inl and
// attend.inl. A tile of scores is [16 keys][16 rows], keys where they lie or packed and queries as
// other levels pack them, so that the softmax is theirs. Weights are turned to [16 rows][32 keys]
// and meet strips of values; O is [rows][dims]. The unit that multiplies tiles works beside the
// vectors: while the weights of one column are computed, the products of the column before and of
// the one behind are handed to it, four at a time.

/// One or two columns of the tile, and the keys of the block in hand that some row of them sees.
struct SeenColumns {
  std::int64_t column[2] = {};
  int count = 0;
  std::int64_t keys = 0;
  bool masked = false;  // not all rows see them, or they are no whole tiles
};

template <class P>
MSA_INLINE_PIECE SeenColumns seen_columns(const AttendContext<P>& c, std::int64_t first,
                                          std::int64_t active) {
  SeenColumns seen;
  IVec least = iset1(std::numeric_limits<std::int32_t>::max()), most = iset1(0);
  seen.count = static_cast<int>(std::min<std::int64_t>(2, active - first));
  for (int col = 0; col < seen.count; ++col) {
    seen.column[col] = c.active[first + col];
    const IVec limits = iload(c.limits + seen.column[col] * kLanes);
    least = imin(least, limits);
    most = imax(most, limits);
  }
  alignas(64) std::int32_t lows[kLanes], highs[kLanes];
  istore(lows, least);
  istore(highs, most);
  seen.keys = *std::max_element(highs, highs + kLanes);
  seen.masked = *std::min_element(lows, lows + kLanes) != seen.keys || seen.keys % 16 != 0;
  return seen;
}

/// Columns whose scores are wanted, in s: [column][keys][rows].
struct ColumnScores {
  SeenColumns seen;
  float* s = nullptr;
};

/// Columns whose weights are known, in p: [column][32 keys][rows][key pairs].
template <class P>
struct ColumnWeights {
  SeenColumns seen;
  const typename P::Word* p = nullptr;
};

/// What the tiles do while weights are computed: columns before are weighed, O += P V, columns
/// behind are scored. It is handed out in equal parts.
///
/// A job is up to two rows of tiles times two columns of them: weights times strips of values, or
/// keys times queries. A step of it is four products.
template <class P>
class TileJobs {
 public:
  TileJobs(const AttendContext<P>& c, const Block<P>& block, const ColumnWeights<P>& before,
           const ColumnScores& after, std::int64_t s_column, std::int64_t parts)
      : c_(c), block_(block), before_(before), after_(after), s_column_(s_column), parts_(parts) {
    const std::int64_t weigh_steps = (before.seen.keys + 31) / 32;
    const std::int64_t score_steps = c.k_words / kKeyWords<P>;
    weigh_jobs_ = before.seen.count > 0 ? (c.call.value_dim + 31) / 32 : 0;
    jobs_ = weigh_jobs_ + (after.seen.keys + 31) / 32;
    all_ = weigh_jobs_ * weigh_steps + (jobs_ - weigh_jobs_) * score_steps;
    if (jobs_ > 0) begin_job();
  }

  MSA_INLINE void part() {
    owed_ += all_;
    for (; owed_ >= parts_ && n_ < jobs_; owed_ -= parts_) step();
  }
  MSA_INLINE void rest() {
    while (n_ < jobs_) step();
  }

 private:
  void begin_job() {
    if (n_ < weigh_jobs_) {
      const std::int64_t d = n_ * 32, dims = c_.call.value_dim;
      left_ = (before_.seen.keys + 31) / 32;
      row_count_ = before_.seen.count;
      column_count_ = d + 16 < dims ? 2 : 1;
      row_stride_ = kTileRow;
      row_step_ = kTileBytes;
      sum_stride_ = 4 * dims;
      for (int i = 0; i < 2; ++i) {
        rows_[i] = reinterpret_cast<const std::byte*>(before_.p + i * c_.p_column);
        columns_[i] = reinterpret_cast<const std::byte*>(c_.v + (d / 16 + i) * c_.strip);
        for (int j = 0; j < 2; ++j)
          sums_[2 * i + j] = c_.state.o + before_.seen.column[i] * dims * kLanes + d + 16 * j;
      }
    } else {
      const std::int64_t key = (n_ - weigh_jobs_) * 32;
      left_ = c_.k_words / kKeyWords<P>;
      row_count_ = key + 16 < after_.seen.keys ? 2 : 1;
      column_count_ = after_.seen.count;
      row_stride_ = 4 * block_.row;
      row_step_ = kTileRow;
      sum_stride_ = kTileRow;
      for (int i = 0; i < 2; ++i) {
        rows_[i] = reinterpret_cast<const std::byte*>(block_.keys + (key + 16 * i) * block_.row);
        columns_[i] =
            reinterpret_cast<const std::byte*>(c_.q + after_.seen.column[i] * c_.q_column);
        for (int j = 0; j < 2; ++j)
          sums_[2 * i + j] = after_.s + j * s_column_ + (key + 16 * i) * kLanes;
      }
    }
    const bool weighs = n_ < weigh_jobs_;
    for_sums([&]<int t>() {
      if (weighs) {
        Tiles::load<t>(sums_[t], sum_stride_);
      } else {
        Tiles::clear<t>();
      }
    });
  }

  /// f<2 i + j>() for the sum of each row i and column j of the job.
  template <class F>
  MSA_INLINE void for_sums(const F& f) {
    f.template operator()<0>();
    if (column_count_ == 2) f.template operator()<1>();
    if (row_count_ == 1) return;
    f.template operator()<2>();
    if (column_count_ == 2) f.template operator()<3>();
  }

  MSA_INLINE void step() {
    Tiles::load<4>(rows_[0], row_stride_);
    Tiles::load<6>(columns_[0], kTileRow);
    Tiles::add_pairs<0, 4, 6>();
    if (column_count_ == 2) {
      Tiles::load<7>(columns_[1], kTileRow);
      Tiles::add_pairs<1, 4, 7>();
    }
    if (row_count_ == 2) {
      Tiles::load<5>(rows_[1], row_stride_);
      Tiles::add_pairs<2, 5, 6>();
      if (column_count_ == 2) Tiles::add_pairs<3, 5, 7>();
    }
    for (int i = 0; i < 2; ++i) {
      rows_[i] += row_step_;
      columns_[i] += kTileBytes;
    }
    if (--left_ > 0) return;
    for_sums([&]<int t>() { Tiles::store<t>(sums_[t], sum_stride_); });
    if (++n_ < jobs_) begin_job();
  }

  const AttendContext<P>& c_;
  const Block<P>& block_;
  const ColumnWeights<P>& before_;
  const ColumnScores& after_;
  std::int64_t s_column_;
  std::int64_t parts_;
  std::int64_t weigh_jobs_, jobs_;  // the former come first
  std::int64_t all_;                // steps
  std::int64_t owed_ = 0;           // of them, times parts_
  std::int64_t n_ = 0;              // the job in hand
  std::int64_t left_ = 0;           // of its steps
  int row_count_ = 0, column_count_ = 0;
  const std::byte* rows_[2] = {};
  const std::byte* columns_[2] = {};
  std::int64_t row_stride_ = 0, row_step_ = 0;  // bytes from row to row, from step to step
  float* sums_[4] = {};
  std::int64_t sum_stride_ = 0;
};

inline constexpr std::int64_t kKeysOfPart = 8;

/// The largest scores of a column.
template <bool Masked>
MSA_INLINE Vec largest_scores(const float* s, std::int64_t keys, IVec limit) {
  Vec best[2] = {set1(-kInfinity), set1(-kInfinity)};
  for (std::int64_t key = 0; key < keys; key += 2) {
    for (int i = 0; i < 2; ++i) {
      Vec score = load(s + (key + i) * kLanes);
      if constexpr (Masked) {
        const Mask seen = igreater(limit, iset1(static_cast<std::int32_t>(key + i)));
        score = select(seen, score, set1(-kInfinity));
      }
      best[i] = max(score, best[i]);  // a NaN score leaves the second operand
    }
  }
  return max(best[0], best[1]);
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
template <class P, bool Masked, class F>
MSA_INLINE void weights_of(const AttendContext<P>& c, std::int64_t block, std::int64_t column,
                           std::int64_t keys, float* s, typename P::Word* p, const F& beside) {
  const Vec best = largest_scores<Masked>(s, keys, iload(c.limits + column * kLanes));
  if (c.call.block_max != nullptr) write_block_max(c, column, block, best);
  if (!c.call.attend) return;
  const auto turn = [&](std::int64_t pair) {
    auto* words = reinterpret_cast<Bits*>(p + pair * kLanes);
    transpose_words(words, kLanes, words, kLanes);
  };
  const Vec alpha =
      update_softmax<P, 1, Masked>(c, column, best, s, p, keys, [&](std::int64_t done) {
        if (done % kKeysOfPart != 0) return;
        beside(done);
        if (done % 32 == 0) turn((done - 32) / 2);
      });
  if (keys % 32 != 0) {
    std::fill(p + keys / 2 * kLanes, p + (keys / 2 + 8) * kLanes, 0u);
    turn((keys - 16) / 2);
  }
  shrink_rows(c.state.o + column * c.call.value_dim * kLanes, alpha, c.call.value_dim);
}

/// The weights of all columns of `scores`, and beside them the tiles' jobs and the block ahead.
template <class P, bool Masked>
inline void weigh_columns(const AttendContext<P>& c, std::int64_t block, const ColumnScores& scores,
                          std::int64_t s_column, typename P::Word* p, const Ahead& ahead,
                          TileJobs<P>& jobs) {
  const std::int64_t keys = round_up(scores.seen.keys, 16);
  for (int col = 0; col < scores.seen.count; ++col) {
    weights_of<P, Masked>(c, block, scores.seen.column[col], keys, scores.s + col * s_column,
                          p + col * c.p_column, [&](std::int64_t done) {
                            jobs.part();
                            if (col > 0 || ahead.count == 0) return;
                            const std::int64_t from = ahead.count * (done - kKeysOfPart) / keys,
                                               to = ahead.count * done / keys;
                            prefetch_rows(ahead.keys, from, to, ahead.key_bytes);
                            prefetch_rows(ahead.values, from, to, ahead.value_bytes);
                          });
  }
  jobs.rest();
}

template <class P>
requires Tiled<P>
inline void visit_active(const AttendContext<P>& c, std::int64_t active, const Block<P>& block,
                         Ahead ahead) {
  const std::int64_t s_column = round_up(c.call.step, kWeighed<P>) * kLanes;
  const ColumnScores no_scores;
  ColumnWeights<P> before;
  ColumnScores scores{seen_columns(c, 0, active), c.s};
  TileJobs<P>(c, block, before, scores, s_column, 1).rest();
  for (std::int64_t i = 0, side = 0; i < active; i += 2, side ^= 1) {
    typename P::Word* p = c.p + side * 2 * c.p_column;
    ColumnScores next;
    if (i + 2 < active) next = {seen_columns(c, i + 2, active), c.s + (side ^ 1) * 2 * s_column};
    TileJobs<P> jobs(c, block, before, next, s_column,
                     scores.seen.count * round_up(scores.seen.keys, 16) / kKeysOfPart);
    if (scores.seen.masked) {
      weigh_columns<P, true>(c, block.id, scores, s_column, p, ahead, jobs);
    } else {
      weigh_columns<P, false>(c, block.id, scores, s_column, p, ahead, jobs);
    }
    if (c.call.attend) before = {scores.seen, p};
    scores = next;
    ahead = {};  // once is enough
  }
  TileJobs<P>(c, block, before, no_scores, s_column, 1).rest();
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
  if (!call.pairs) return kernels_below().attend(call, tile, scratch, states);
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
  kernels.dense_rows = 512;  // products are faster, packing is not
  kernels.columns = 4;       // two at work, two beside them
  kernels.words_of_bf16 = TileProducts::kPack;
  kernels.attend = attend_by_tiles;
  return kernels;
}
