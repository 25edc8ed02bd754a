// SPDX-License-Identifier: MIT
// Attention over packed tiles, rows in lanes (docs/kernels/cpu-attend.md). A column is one vector
// of query rows; for each block of keys, S = K Q, an online softmax and O = O alpha + V P run over
// one or two columns at a time, all vertical. The two products share one register tile of kTile x 2
// accumulators over words that hold one float or a bf16 pair. Tiles of a column or two, decode,
// read bf16 keys and values where they lie; their O has its value dims in the lanes. Codes become
// values where they are packed. Levels with tiles replace both products (attend_tiles.inl).

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Of scores to exponents of 2; negated queries have negated scores.
inline float scale_of(const AttendCall& call) {
  return (call.negate ? -call.scale : call.scale) * kLog2E;
}

inline std::int64_t round_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b * b; }

/// Products of whole tiles of 16 x 16, in steps of 32.
template <class P>
concept Tiled = requires {
  P::kTiles;
};

/// Keys that are scored together; keys whose weights meet values together; words of a key's step.
template <class P>
inline constexpr std::int64_t kScored = Tiled<P> ? 16 : kTile;
template <class P>
inline constexpr std::int64_t kWeighed = Tiled<P> ? 32 : P::kPack;
template <class P>
inline constexpr std::int64_t kKeyWords = Tiled<P> ? 16 : 1;

/// A block of keys as a visit reads it. Keys are packed, or as they lie where words are what is
/// stored; values are packed, or left to the visit, which then packs a few dims at a time.
template <class P>
struct Block {
  const typename P::Word* keys = nullptr;
  std::int64_t row = 0;  // words from key to key
  std::int64_t id = 0;   // of the request, local
  std::int64_t start = 0, count = 0;
  std::int64_t values = 0;  // of its keys, those whose values are read
  bool values_packed = true;
};

/// The block that comes next: rows to prefetch while the block in hand is computed.
struct Ahead {
  const std::byte* const* keys = nullptr;
  const std::byte* const* values = nullptr;
  std::int64_t count = 0;
  std::int64_t key_bytes = 0, value_bytes = 0;
};

/// What a visit needs to know, gathered once per tile.
template <class P>
struct AttendContext {
  using Word = typename P::Word;
  const AttendCall& call;
  const AttendTile& tile;
  AttendState state;
  std::int64_t head;  // the KV head in hand
  Word* q;
  Word* k;
  Word* v;
  Word* p;
  float* s;
  std::int32_t* limits;
  std::int32_t* active;
  const std::byte** ahead;
  const std::byte** values;  // rows of values of the block in hand
  std::int64_t rows;         // live rows of the tile
  std::int64_t columns;
  std::int64_t k_words;   // words of a packed key
  std::int64_t q_column;  // words of a packed column of queries
  std::int64_t strip;     // words of a strip of values
  std::int64_t p_column;  // words of a column of probabilities
};

// ---- packing ----

/// Calls f(first, count, base, scales) for every run of keys that lie at a constant stride: [start,
/// start + count) of the request.
template <class S, class F>
inline void for_each_segment(const AttendCall& call, const AttendTile& tile, const KeyTensor& keys,
                             std::int64_t head, std::int64_t start, std::int64_t count,
                             const F& f) {
  const auto* data = reinterpret_cast<const typename S::T*>(keys.data) + head * keys.head;
  const auto* scales =
      reinterpret_cast<const typename S::Scale*>(keys.scales) + head * keys.scale_head;
  if (call.page_size == 0) {
    const std::int64_t row = tile.request.k_begin + start;
    f(std::int64_t{0}, count, data + row * keys.row, scales + row * keys.scale_row);
    return;
  }
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t page = (start + done) / call.page_size,
                       in_page = (start + done) % call.page_size;
    const std::int64_t run = std::min(count - done, call.page_size - in_page);
    const std::int64_t id = call.page_table[tile.batch * call.table_row + page * call.table_col];
    f(done, run, data + id * keys.page + in_page * keys.row,
      scales + id * keys.scale_page + in_page * keys.scale_row);
    done += run;
  }
}

/// Dims [begin, end) of a row as bf16.
template <class P, class S, class Scaling>
MSA_INLINE void row_to_halves(const typename S::T* row, std::int64_t begin, std::int64_t end,
                              const Scaling& scaling, std::uint16_t* to) {
  for (std::int64_t d = begin; d < end; d += 16)
    S::template halves<P>(row, d, scaling, to + d - begin);
}

/// One row of `dim` values as words: widened to fp32, or bf16 when words hold pairs of it.
template <class P, class S, class Scaling>
MSA_INLINE void pack_row(typename P::Word* to, const typename S::T* row, std::int64_t dim,
                         const Scaling& scaling) {
  if constexpr (P::kPack == 1) {
    for (std::int64_t d = 0; d < dim; d += kLanes) store(to + d, S::values(row, d, scaling));
  } else {
    row_to_halves<P, S>(row, 0, dim, scaling, reinterpret_cast<std::uint16_t*>(to));
  }
}

/// Keys as rows of words; zero rows up to a multiple of those that are scored together.
template <class P, class S>
inline void pack_keys(const AttendContext<P>& c, std::int64_t start, std::int64_t count) {
  const KeyTensor& k = c.call.k;
  for_each_segment<S>(
      c.call, c.tile, k, c.head, start, count,
      [&](std::int64_t first, std::int64_t run, const auto* from, const auto* scales) {
        for (std::int64_t j = 0; j < run; ++j) {
          typename P::Word* to = c.k + (first + j) * c.k_words;
          pack_row<P, S>(to, from + j * k.row, c.call.head_dim,
                         S::scaling(k, scales + j * k.scale_row));
          if constexpr (Tiled<P>) std::fill(to + c.call.head_dim / P::kPack, to + c.k_words, 0u);
        }
      });
  const std::int64_t padded = round_up(count, kScored<P>);
  std::memset(c.k + count * c.k_words, 0,
              static_cast<std::size_t>((padded - count) * c.k_words) * sizeof *c.k);
}

/// Values of dims [begin, end) as strips of kLanes dims, each [key words][kLanes]. The last key of
/// an odd count is its own partner: probabilities behind the last key are zero.
template <class P, class S>
inline void pack_values(const AttendContext<P>& c, std::int64_t start, std::int64_t count,
                        std::int64_t begin, std::int64_t end) {
  const KeyTensor& v = c.call.v;
  for_each_segment<S>(
      c.call, c.tile, v, c.head, start, count,
      [&](std::int64_t first, std::int64_t run, const auto* from, const auto* scales) {
        for (std::int64_t j = 0; j < run; j += P::kPack) {
          const auto* row = from + j * v.row;
          const auto scaling = S::scaling(v, scales + j * v.scale_row);
          typename P::Word* to = c.v + (first + j) / P::kPack * kLanes;
          if constexpr (P::kPack == 1) {
            for (std::int64_t d = begin; d < end; d += kLanes)
              store(to + (d - begin) / kLanes * c.strip, S::values(row, d, scaling));
          } else if constexpr (kWordsAreStored<S>) {
            const auto* next = j + 1 < run ? row + v.row : row;
            P::interleave(row + begin, next + begin, end - begin, to, c.strip);
          } else {
            std::uint16_t halves[2][kMaxDim];
            row_to_halves<P, S>(row, begin, end, scaling, halves[0]);
            if (j + 1 < run) {
              row_to_halves<P, S>(row + v.row, begin, end,
                                  S::scaling(v, scales + (j + 1) * v.scale_row), halves[1]);
            }
            P::interleave(halves[0], halves[j + 1 < run ? 1 : 0], end - begin, to, c.strip);
          }
        }
      });
  if constexpr (Tiled<P>) {  // weights behind the last key are zero, and meet values
    const std::int64_t words = (count + 1) / 2, padded = round_up(count, kWeighed<P>) / 2;
    for (std::int64_t d = 0; d < end - begin; d += kLanes) {
      typename P::Word* strip = c.v + d / kLanes * c.strip;
      std::fill(strip + words * kLanes, strip + padded * kLanes, 0u);
    }
  }
}

/// Values as rows of bf16, where a tile whose dims are in the lanes reads them.
template <class P, class S>
inline void widen_values(const AttendContext<P>& c, std::int64_t start, std::int64_t count) {
  const KeyTensor& v = c.call.v;
  auto* rows = reinterpret_cast<std::uint16_t*>(c.v);
  for_each_segment<S>(
      c.call, c.tile, v, c.head, start, count,
      [&](std::int64_t first, std::int64_t run, const auto* from, const auto* scales) {
        for (std::int64_t j = 0; j < run; ++j) {
          std::uint16_t* to = rows + (first + j) * c.call.value_dim;
          row_to_halves<P, S>(from + j * v.row, 0, c.call.value_dim,
                              S::scaling(v, scales + j * v.scale_row), to);
          c.values[first + j] = reinterpret_cast<const std::byte*>(to);
        }
      });
}

/// Queries of one column, transposed to [words][lanes]; rows behind the tile's last are zero.
template <class P, class S>
inline void pack_queries(const AttendContext<P>& c, std::int64_t column, float* rows) {
  // Words of a row, padded to the transposition's tile.
  const std::int64_t width = c.q_column / kLanes;
  auto* words = reinterpret_cast<Bits*>(rows);
  std::memset(words, 0, static_cast<std::size_t>(kLanes * width) * sizeof *words);
  const auto* q = reinterpret_cast<const typename S::T*>(c.call.q);
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::int64_t r = column * kLanes + lane;
    if (r >= c.rows) break;
    const std::int64_t token = c.tile.request.q_begin + c.tile.token + r / c.call.group;
    const std::int64_t head = c.head * c.call.group + r % c.call.group;
    auto* to = reinterpret_cast<typename P::Word*>(words + lane * width);
    const auto* row = q + token * c.call.q_row + head * c.call.q_head;
    if constexpr (P::kPack == 1) {
      for (std::int64_t d = 0; d < c.call.head_dim; d += kLanes)
        store(to + d, S::load_vec(row + d));
    } else {
      pack_row<P, S>(to, row, c.call.head_dim, Unscaled{});
    }
  }
  if (c.call.negate) {
    const std::uint32_t signs = P::kPack == 1 ? 0x80000000u : 0x80008000u;
    for (std::int64_t i = 0; i < kLanes * width; ++i) words[i] ^= signs;
  }
  auto* to = reinterpret_cast<Bits*>(c.q + column * c.q_column);
  for (std::int64_t w = 0; w < width; w += kLanes)
    transpose_words(words + w, width, to + w * kLanes, kLanes);
}

/// Points at keys where they lie, when that is what the products can read: bf16 words, one run,
/// whole tiles.
template <class P, class S>
inline bool keys_in_place(const AttendContext<P>& c, Block<P>& block) {
  if constexpr (P::kPack == 2 && kWordsAreStored<S>) {
    for_each_segment<S>(c.call, c.tile, c.call.k, c.head, block.start, block.count,
                        [&](std::int64_t, std::int64_t run, const auto* from, const auto*) {
                          const bool aligned =
                              reinterpret_cast<std::uintptr_t>(from) % sizeof(typename P::Word) ==
                              0;
                          if (run != block.count || run % kScored<P> != 0 || !aligned) return;
                          if (c.call.k.row % 2 != 0 || c.call.head_dim / 2 % kKeyWords<P> != 0)
                            return;
                          block.keys = reinterpret_cast<const typename P::Word*>(from);
                          block.row = c.call.k.row / 2;
                        });
  }
  return block.keys != nullptr;
}

/// Where the rows of keys or values [start, start + count) lie.
template <class P, class S>
inline void list_rows(const AttendContext<P>& c, const KeyTensor& keys, std::int64_t head,
                      std::int64_t start, std::int64_t count, const std::byte** rows) {
  for_each_segment<S>(c.call, c.tile, keys, head, start, count,
                      [&](std::int64_t first, std::int64_t run, const auto* from, const auto*) {
                        for (std::int64_t j = 0; j < run; ++j)
                          rows[first + j] = reinterpret_cast<const std::byte*>(from + j * keys.row);
                      });
}

/// Rows of the head and block that will be visited next.
template <class P, class S>
inline Ahead look_ahead(const AttendContext<P>& c, std::int64_t head, std::int64_t start,
                        std::int64_t count) {
  list_rows<P, S>(c, c.call.k, head, start, count, c.ahead);
  if (c.call.attend) list_rows<P, S>(c, c.call.v, head, start, count, c.ahead + c.call.step);
  return {c.ahead, c.ahead + c.call.step, count, S::bytes(c.call.head_dim),
          S::bytes(c.call.value_dim)};
}

inline constexpr std::int64_t kLine = 64;

/// Prefetches rows [begin, end) into the second-level cache.
MSA_INLINE void prefetch_rows(const std::byte* const* rows, std::int64_t begin, std::int64_t end,
                              std::int64_t bytes) {
  for (std::int64_t j = begin; j < end; ++j) {
    for (std::int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(rows[j] + at, 0, 2);
  }
}

inline constexpr std::int64_t kStride = 8;  // steps of a product between two calls of Touch::some

/// Rows to prefetch during the products of one block, an equal part in each. With one column memory
/// is as busy as arithmetic, and they are asked for a few at a time: a burst longer than the core
/// has buffers for misses would hold up the loads behind it.
class Touch {
 public:
  /// `count` rows over `products` products of `steps` steps.
  MSA_INLINE Touch(const std::byte* const* rows, std::int64_t count, std::int64_t bytes,
                   std::int64_t products, std::int64_t steps)
      : rows_(rows),
        end_(count),
        bytes_(bytes),
        part_((count + products - 1) / products),
        at_once_(part_ * kStride / steps + 1) {}

  MSA_INLINE void next_product() { until_ = std::min(until_ + part_, end_); }
  MSA_INLINE void some() {
    const std::int64_t stop = std::min(next_ + at_once_, until_);
    prefetch_rows(rows_, next_, stop, bytes_);
    next_ = stop;
  }
  MSA_INLINE void all() {
    prefetch_rows(rows_, next_, until_, bytes_);
    next_ = until_;
  }

 private:
  const std::byte* const* rows_;
  std::int64_t next_ = 0, until_ = 0;  // of the product in hand
  std::int64_t end_;
  std::int64_t bytes_;
  std::int64_t part_;
  std::int64_t at_once_;
};

// ---- the register tile ----

/// acc[r][c] += sum over steps of a[step * a_step + r * a_row] * b[c][step], lane by lane: every
/// word of `a` that is broadcast feeds all columns, and kTile x Cols independent sums hide the
/// latency of the products.
template <class P, int Cols>
MSA_INLINE void multiply(Vec (&acc)[kTile][Cols], const typename P::Word* a, std::int64_t a_step,
                         std::int64_t a_row, const typename P::Word* const (&b)[Cols],
                         std::int64_t steps, Touch& touch) {
  touch.next_product();
  if constexpr (Cols > 1) touch.all();
  for (std::int64_t step = 0; step < steps; ++step) {
    if (Cols == 1 && step % kStride == 0) touch.some();
    decltype(P::load_lanes(b[0])) x[Cols];
    for (int col = 0; col < Cols; ++col) x[col] = P::load_lanes(b[col] + step * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kTile; ++r) {
      const auto w = P::broadcast(a + r * a_row);
#pragma GCC unroll 2
      for (int col = 0; col < Cols; ++col) acc[r][col] = P::step(acc[r][col], w, x[col]);
    }
    a += a_step;
  }
}

// ---- one visit: Cols columns against one packed block ----

/// Scores of `keys` (a multiple of kScored) keys to c.s as [keys][Cols][lanes], and their running
/// maximum. The operand order of `max` drops a NaN score; it comes back through the exponential.
template <class P, int Cols, bool Masked>
MSA_INLINE void score_block(const AttendContext<P>& c, const std::int64_t (&column)[Cols],
                            const Block<P>& block, std::int64_t keys, const Ahead& ahead,
                            Vec (&best)[Cols]) {
  const typename P::Word* q[Cols];
  IVec limit[Cols];
  for (int col = 0; col < Cols; ++col) {
    q[col] = c.q + column[col] * c.q_column;
    limit[col] = iload(c.limits + column[col] * kLanes);
    best[col] = set1(-kInfinity);
  }
  Touch touch(ahead.keys, ahead.count, ahead.key_bytes, keys / kTile, c.k_words);
  for (std::int64_t key = 0; key < keys; key += kTile) {
    Vec acc[kTile][Cols];
#pragma GCC unroll 8
    for (int r = 0; r < kTile; ++r) {
      for (int col = 0; col < Cols; ++col) acc[r][col] = zero();
    }
    multiply<P, Cols>(acc, block.keys + key * block.row, 1, block.row, q, c.k_words, touch);
    float* s = c.s + key * Cols * kLanes;
#pragma GCC unroll 8
    for (int r = 0; r < kTile; ++r) {
      for (int col = 0; col < Cols; ++col) {
        store(s + (r * Cols + col) * kLanes, acc[r][col]);
        Vec candidate = acc[r][col];
        if constexpr (Masked) {
          const Mask seen = igreater(limit[col], iset1(static_cast<std::int32_t>(key + r)));
          candidate = select(seen, candidate, set1(-kInfinity));
        }
        best[col] = max(candidate, best[col]);
      }
    }
  }
}

/// Exponentials of one of `Cols` columns of scores to words of probabilities; returns their sum,
/// from the unrounded values. `behind(key)` is called behind every second key.
template <class P, int Cols, bool Masked, class F>
MSA_INLINE Vec exponentials(const float* s, typename P::Word* p, IVec limit, Vec scale, Vec shift,
                            std::int64_t keys, const F& behind) {
  Vec sum[2] = {zero(), zero()};
  const auto one = [&](std::int64_t key) {
    Vec x = exp2(fma(load(s + key * Cols * kLanes), scale, shift));
    if constexpr (Masked) {
      x = select(igreater(limit, iset1(static_cast<std::int32_t>(key))), x, zero());
    }
    return x;
  };
  for (std::int64_t key = 0; key < keys; key += 2) {
    const Vec even = one(key), odd = one(key + 1);
    sum[0] = add(sum[0], even);
    sum[1] = add(sum[1], odd);
    if constexpr (P::kPack == 1) {
      store(p + key * kLanes, even);
      store(p + (key + 1) * kLanes, odd);
    } else {
      istore(p + key / 2 * kLanes, P::pair(even, odd));
    }
    behind(key + 2);
  }
  return add(sum[0], sum[1]);
}

/// O = O alpha + V P for the value dims [begin, end), whose strips lie at the start of c.v.
template <class P, int Cols>
MSA_INLINE_PIECE void accumulate(const AttendContext<P>& c, const std::int64_t (&column)[Cols],
                                 const Vec (&alpha)[Cols], std::int64_t steps, std::int64_t begin,
                                 std::int64_t end, Touch& touch) {
  const typename P::Word* p[Cols];
  float* o[Cols];
  for (int col = 0; col < Cols; ++col) {
    p[col] = c.p + col * c.p_column;
    o[col] = c.state.o + column[col] * c.call.value_dim * kLanes;
  }
  for (std::int64_t d = begin; d < end; d += kTile) {
    Vec acc[kTile][Cols];
#pragma GCC unroll 8
    for (int r = 0; r < kTile; ++r) {
      for (int col = 0; col < Cols; ++col)
        acc[r][col] = mul(load(o[col] + (d + r) * kLanes), alpha[col]);
    }
    const typename P::Word* v = c.v + (d - begin) / kLanes * c.strip + d % kLanes;
    multiply<P, Cols>(acc, v, kLanes, 1, p, steps, touch);
#pragma GCC unroll 8
    for (int r = 0; r < kTile; ++r) {
      for (int col = 0; col < Cols; ++col) store(o[col] + (d + r) * kLanes, acc[r][col]);
    }
  }
}

// Up to here a block has one visit, and a packed copy of it would not pay; a tile's O has its dims
// in the lanes, as have all that are made of tiles.
inline constexpr std::int64_t kFewColumns = 2;

template <class P>
inline bool dims_in_lanes(const AttendContext<P>& c) {
  return Tiled<P> || (P::kPack == 2 && c.columns <= kFewColumns);
}

/// O = O alpha + P V for one column of a tile whose O is [rows][Dv]: pairs of values are joined in
/// registers, and each feeds kTile rows.
template <class P>
MSA_INLINE_PIECE void accumulate_rows(const AttendContext<P>& c, std::int64_t column,
                                      const typename P::Word* p, Vec alpha, std::int64_t keys,
                                      const Ahead& ahead) {
  float factor[kLanes];
  store(factor, alpha);
  const std::int64_t rows = std::min<std::int64_t>(kLanes, c.rows - column * kLanes),
                     dims = c.call.value_dim;
  const std::byte* const* values = c.values;
  Touch touch(ahead.values, ahead.count, ahead.value_bytes,
              round_up(dims, 2 * kLanes) / (2 * kLanes) * (round_up(rows, kTile) / kTile),
              keys / 2 + 1);
  for (std::int64_t d = 0; d < dims; d += 2 * kLanes) {
    const int vectors = d + kLanes < dims ? 2 : 1;
    for (std::int64_t row = 0; row < rows; row += kTile) {
      float* o = c.state.o + (column * kLanes + row) * dims + d;
      Vec acc[kTile][2];
#pragma GCC unroll 8
      for (int r = 0; r < kTile; ++r) {
        const Vec a = set1(factor[row + r]);
        acc[r][0] = mul(load(o + r * dims), a);
        acc[r][1] = vectors == 2 ? mul(load(o + r * dims + kLanes), a) : zero();
      }
      touch.next_product();
      for (std::int64_t key = 0; key < keys; key += 2) {
        if (key % (2 * kStride) == 0) touch.some();
        const std::byte* even = values[key];
        const std::byte* odd = values[key + 1];
        IVec words[2];
        P::pair_rows(reinterpret_cast<const std::uint16_t*>(even) + d,
                     reinterpret_cast<const std::uint16_t*>(odd) + d, dims - d, words);
        const typename P::Word* weight = p + key / 2 * kLanes + row;
#pragma GCC unroll 8
        for (int r = 0; r < kTile; ++r) {
          const auto w = P::broadcast(weight + r);
          acc[r][0] = P::step(acc[r][0], w, words[0]);
          acc[r][1] = P::step(acc[r][1], w, words[1]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kTile; ++r) {
        store(o + r * dims, acc[r][0]);
        if (vectors == 2) store(o + r * dims + kLanes, acc[r][1]);
      }
    }
  }
}

/// Gives O of a tile whose dims are in the lanes the form that all others have.
template <class P>
inline void turn_rows(const AttendContext<P>& c) {
  const std::int64_t dims = c.call.value_dim;
  for (std::int64_t column = 0; column < c.columns; ++column) {
    float* o = c.state.o + column * kLanes * dims;
    for (std::int64_t d = 0; d < dims; d += kLanes) {
      transpose_words(reinterpret_cast<const Bits*>(o + d), dims,
                      reinterpret_cast<Bits*>(c.s + d * kLanes), kLanes);
    }
    std::memcpy(o, c.s, static_cast<std::size_t>(kLanes * dims) * sizeof *o);
  }
}

/// 8 KB of packed bf16 values: they never leave the first-level cache.
inline constexpr std::int64_t kDimsAtOnce = 32;

/// Block maxima of a column to the caller's tensor.
template <class P>
inline void write_block_max(const AttendContext<P>& c, std::int64_t column, std::int64_t block,
                            Vec best) {
  float value[kLanes];
  store(value, best);
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::int64_t r = column * kLanes + lane;
    if (r >= c.rows) break;
    const std::int64_t token = c.tile.request.q_begin + c.tile.token + r / c.call.group;
    const std::int64_t head = c.head * c.call.group + r % c.call.group;
    c.call.block_max[token * c.call.max_row + head * c.call.max_head + block * c.call.max_block] =
        value[lane];
  }
}

/// Largest scores, without those that are minus infinity once they are scaled: they weigh nothing.
MSA_INLINE Vec drop_lowest(Vec best, Vec scale) {
  const Vec lowest = set1(-kInfinity);
  return select(equal(mul(best, scale), lowest), lowest, best);
}

/// What exponents are relative to: the largest score so far, in base 2, and the tile's bias.
/// Rounded once, so that a rescale takes away exactly what the exponentials subtracted; 0 for a row
/// that has seen nothing.
MSA_INLINE Vec base_of(Vec m, Vec scale, Vec bias) {
  const Vec seen = select(equal(m, set1(-kInfinity)), zero(), m);
  return rounded(add(rounded(mul(seen, scale)), bias));
}

/// What is added to scaled scores. Where the largest is plus infinity, all weights are NaN.
MSA_INLINE Vec shift_of(Vec base) { return fma(base, zero(), sub(zero(), base)); }

/// Rows whose bases are so large that what rounding them took away could be all of a weight: a
/// fused product sees it. Their scores are subtracted before they are scaled.
MSA_INLINE Mask far_rows(Vec base) {
  const Vec size = max(base, sub(zero(), base));
  return greater(select(equal(size, set1(kInfinity)), zero(), size), set1(0x1p24f));
}

/// Takes the largest score of far rows from their scores of a block: one of `cols` columns.
inline void subtract_far(float* s, std::int64_t keys, std::int64_t cols, Mask far, Vec largest) {
  for (std::int64_t key = 0; key < keys; ++key, s += cols * kLanes)
    store(s, select(far, sub(load(s), largest), load(s)));
}

/// By how much weights shrink where the largest score of a row moves. What a row held that had seen
/// nothing is dropped.
MSA_INLINE Vec decay(Vec before, Vec after, Vec scale, Vec bias) {
  const Vec from = base_of(before, scale, bias), to = base_of(after, scale, bias);
  const Mask was_far = far_rows(from), is_far = far_rows(to);
  Vec x = sub(from, to);
  if (bits(either(was_far, is_far)) != 0) {
    const Vec left = select(was_far, fma(before, scale, sub(bias, to)), x);
    const Vec came = fma(sub(zero(), after), scale, sub(from, bias));
    x = select(is_far, select(was_far, mul(sub(before, after), scale), came), left);
  }
  return select(equal(before, set1(-kInfinity)), zero(), exp2(x));
}

/// O = O alpha + V P for the first `keys` keys of a block.
template <class P, int Cols>
MSA_INLINE void weigh_values(const AttendContext<P>& c, const std::int64_t (&column)[Cols],
                             const Block<P>& block, const Vec (&alpha)[Cols], std::int64_t keys,
                             const Ahead& ahead) {
  if constexpr (P::kPack == 2) {
    if (dims_in_lanes(c)) {
      for (int col = 0; col < Cols; ++col) {
        accumulate_rows(c, column[col], c.p + col * c.p_column, alpha[col], keys,
                        col == 0 ? ahead : Ahead{});
      }
      return;
    }
  }
  const std::int64_t steps = (keys + P::kPack - 1) / P::kPack, dims = c.call.value_dim;
  Touch touch(ahead.values, ahead.count, ahead.value_bytes, round_up(dims, kTile) / kTile, steps);
  if (block.values_packed) {
    accumulate<P, Cols>(c, column, alpha, steps, 0, dims, touch);
    return;
  }
  if constexpr (P::kPack == 2) {
    for (std::int64_t d = 0; d < dims; d += kDimsAtOnce) {
      const std::int64_t end = std::min(d + kDimsAtOnce, dims);
      pack_values<P, StoredAs<DType::BF16>>(c, block.start, block.values, d, end);
      accumulate<P, Cols>(c, column, alpha, steps, d, end, touch);
    }
  }
}

/// Takes the scores s of one of `Cols` columns, whose largest are `best`, into its softmax, and
/// leaves their weights in p. Returns alpha, by how much those before shrink.
template <class P, int Cols, bool Masked, class F>
MSA_INLINE Vec update_softmax(const AttendContext<P>& c, std::int64_t column, Vec best, float* s,
                              typename P::Word* p, std::int64_t keys, const F& behind) {
  const Vec scale = set1(scale_of(c.call)), bias = set1(c.tile.bias);
  float* m = c.state.m + column * kLanes;
  float* l = c.state.l + column * kLanes;
  const Vec before = load(m), after = max(drop_lowest(best, scale), before);
  const Vec alpha = decay(before, after, scale, bias);
  Vec base = base_of(after, scale, bias);
  if (const Mask far = far_rows(base); bits(far) != 0) {
    subtract_far(s, keys, Cols, far, after);
    base = select(far, bias, base);
  }
  const IVec limit = iload(c.limits + column * kLanes);
  const Vec sum = exponentials<P, Cols, Masked>(s, p, limit, scale, shift_of(base), keys, behind);
  store(l, fma(load(l), alpha, sum));
  store(m, after);
  return alpha;
}

template <class P, int Cols, bool Masked>
inline void visit_columns(const AttendContext<P>& c, const std::int64_t (&column)[Cols],
                          const Block<P>& block, std::int64_t keys, const Ahead& ahead) {
  Vec best[Cols], alpha[Cols];
  const std::int64_t padded = round_up(keys, kScored<P>);
  score_block<P, Cols, Masked>(c, column, block, padded, ahead, best);
  if (c.call.block_max != nullptr) {
    for (int col = 0; col < Cols; ++col) write_block_max(c, column[col], block.id, best[col]);
  }
  if (!c.call.attend) return;
  for (int col = 0; col < Cols; ++col) {
    alpha[col] =
        update_softmax<P, Cols, Masked>(c, column[col], best[col], c.s + col * kLanes,
                                        c.p + col * c.p_column, padded, [](std::int64_t) {});
  }
  weigh_values<P, Cols>(c, column, block, alpha, keys, ahead);
}

/// Visits `block` with columns that need it: `keys` is the largest limit of any of their rows;
/// without a mask when all rows have that limit and no padding key takes part.
template <class P, int Cols>
inline void visit(const AttendContext<P>& c, const std::int64_t (&column)[Cols],
                  const Block<P>& block, const Ahead& ahead) {
  std::int32_t most = 0, least = std::numeric_limits<std::int32_t>::max();
  for (int col = 0; col < Cols; ++col) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::int32_t limit = c.limits[column[col] * kLanes + lane];
      most = std::max(most, limit);
      least = std::min(least, limit);
    }
  }
  if (least == most && most % kScored<P> == 0) {
    visit_columns<P, Cols, false>(c, column, block, most, ahead);
  } else {
    visit_columns<P, Cols, true>(c, column, block, most, ahead);
  }
}

// ---- a tile ----

/// Limits of all rows for a block that every token attends to; returns the number of columns with a
/// visible key.
template <class P>
inline std::int64_t limit_all(const AttendContext<P>& c, const std::int32_t* visible,
                              std::int64_t start, std::int64_t count) {
  std::int64_t active = 0;
  for (std::int64_t column = 0; column < c.columns; ++column) {
    const IVec seen =
        isub(iload(visible + column * kLanes), iset1(static_cast<std::int32_t>(start)));
    const IVec limit = imin(imax(seen, iset1(0)), iset1(static_cast<std::int32_t>(count)));
    istore(c.limits + column * kLanes, limit);
    const std::int64_t live = std::min<std::int64_t>(kLanes, c.rows - column * kLanes);
    if ((bits(igreater(limit, iset1(0))) & ((1ull << live) - 1)) == 0) continue;
    c.active[active++] = static_cast<std::int32_t>(column);
  }
  return active;
}

/// Limits of the rows whose tokens list the block; all others have zero. Rows behind the tile's
/// last join with whoever is first.
template <class P>
inline std::int64_t limit_listed(const AttendContext<P>& c, const std::int32_t* visible,
                                 const Visit& visit, std::int64_t start, std::int64_t count) {
  std::int64_t active = 0;
  const std::int64_t group = c.call.group;
  for (std::int32_t i = 0; i < visit.count; ++i) {
    const std::int64_t row = c.tile.visit_tokens[visit.first + i] * group;
    const auto limit =
        static_cast<std::int32_t>(std::clamp<std::int64_t>(visible[row] - start, 0, count));
    if (limit == 0) continue;
    for (std::int64_t column = row / kLanes; column <= (row + group - 1) / kLanes; ++column) {
      if (active > 0 && c.active[active - 1] == column) continue;
      c.active[active++] = static_cast<std::int32_t>(column);
      for (int lane = 0; lane < kLanes; ++lane) {
        const bool dead = column * kLanes + lane >= c.rows;
        c.limits[column * kLanes + lane] = dead ? limit : 0;
      }
    }
    for (std::int64_t r = row; r < row + group; ++r) c.limits[r] = limit;
  }
  return active;
}

template <class P>
inline void visit_active(const AttendContext<P>& c, std::int64_t active, const Block<P>& block,
                         Ahead ahead) {
  std::int64_t i = 0;
  for (; i + 2 <= active; i += 2) {
    const std::int64_t pair[2] = {c.active[i], c.active[i + 1]};
    visit<P, 2>(c, pair, block, ahead);
    ahead = {};  // once is enough
  }
  if (i < active) {
    const std::int64_t single[1] = {c.active[i]};
    visit<P, 1>(c, single, block, ahead);
  }
}

/// Keys that each row sees; rows behind the tile's last repeat it, so that they never force a mask.
template <class P>
inline void fill_visible(const AttendContext<P>& c, std::int32_t* visible) {
  for (std::int64_t r = 0; r < c.columns * kLanes; ++r) {
    const std::int64_t token = std::min(r, c.rows - 1) / c.call.group;
    visible[r] = static_cast<std::int32_t>(c.tile.request.visible_keys(c.tile.token + token));
  }
}

/// Block maxima of blocks that no row of this piece of the tile sees.
template <class P>
inline void clear_block_max(const AttendContext<P>& c, std::int64_t begin, std::int64_t end) {
  for (std::int64_t column = 0; column < c.columns; ++column) {
    for (std::int64_t block = begin; block < end; ++block)
      write_block_max(c, column, block, set1(-kInfinity));
  }
}

template <class P>
inline AttendContext<P> context_of(const AttendCall& call, const AttendTile& tile,
                                   const AttendScratch& scratch, const AttendState& state,
                                   std::int64_t h) {
  using Word = typename P::Word;
  const std::int64_t rows = tile.tokens * call.group, columns = round_up(rows, kLanes) / kLanes;
  const std::int64_t k_words = round_up(call.head_dim / P::kPack, kKeyWords<P>);
  const std::int64_t p_column = round_up(call.step, kWeighed<P>) / P::kPack * kLanes;
  const std::int64_t q_column = round_up(k_words, kLanes) * kLanes;
  // Off by a line: strips at a power of two would share a cache set.
  const std::int64_t strip = p_column + kLanes;
  return {.call = call,
          .tile = tile,
          .state = state,
          .head = tile.head + h,
          .q = reinterpret_cast<Word*>(scratch.q) + h * columns * q_column,
          .k = reinterpret_cast<Word*>(scratch.k),
          .v = reinterpret_cast<Word*>(scratch.v),
          .p = reinterpret_cast<Word*>(scratch.p),
          .s = scratch.s,
          .limits = scratch.limits,
          .active = scratch.active,
          .ahead = scratch.ahead,
          .values = scratch.ahead + 2 * call.step,
          .rows = rows,
          .columns = columns,
          .k_words = k_words,
          .q_column = q_column,
          .strip = strip,
          .p_column = p_column};
}

/// f(storage) for the types of queries that P multiplies.
template <class P, class F>
inline void with_queries(DType dtype, const F& f) {
  if (dtype == DType::E4M3) return f(StoredAs<DType::E4M3>{});
  if constexpr (P::kPack == 2) {
    f(StoredAs<DType::BF16>{});
  } else {
    with_storage(dtype, [&](auto storage) { f(StoredAs<decltype(storage)::kType>{}); });
  }
}

template <class P>
inline void begin_tile(const AttendContext<P>& c, float* rows) {
  with_queries<P>(c.call.dtype, [&](auto storage) {
    for (std::int64_t column = 0; column < c.columns; ++column)
      pack_queries<P, decltype(storage)>(c, column, rows);
  });
  if (c.call.attend) {
    std::fill_n(c.state.o, c.columns * c.call.value_dim * kLanes, 0.0f);
    std::fill_n(c.state.l, c.columns * kLanes, 0.0f);
    std::fill_n(c.state.m, c.columns * kLanes, -kInfinity);
  }
  if (c.call.block_max != nullptr) {
    clear_block_max(c, c.tile.begin, c.tile.last ? c.call.max_blocks : c.tile.end);
  }
}

inline std::int64_t block_of(const AttendTile& tile, std::int64_t i) {
  return tile.visits == nullptr ? i : std::int64_t{tile.visits[i].block};
}

inline std::int64_t keys_of(const AttendCall& call, const AttendTile& tile, std::int64_t block) {
  return std::min(call.step, tile.request.seqlen_k - block * call.step);
}

/// Keys and values are stored as S.
template <class P, class S>
inline void attend_tile(const AttendCall& call, const AttendTile& tile,
                        const AttendScratch& scratch, const AttendState* states) {
  const AttendContext<P> first = context_of<P>(call, tile, scratch, states[0], 0);
  fill_visible(first, scratch.visible);
  for (std::int64_t h = 0; h < tile.heads; ++h) {
    begin_tile(context_of<P>(call, tile, scratch, states[h], h), scratch.s);
  }
  if (tile.begin < tile.end) {
    const std::int64_t block = block_of(tile, tile.begin);
    const Ahead ahead =
        look_ahead<P, S>(first, tile.head, block * call.step, keys_of(call, tile, block));
    prefetch_rows(ahead.keys, 0, ahead.count, ahead.key_bytes);
    if (call.attend) prefetch_rows(ahead.values, 0, ahead.count, ahead.value_bytes);
  }
  for (std::int64_t i = tile.begin; i < tile.end; ++i) {
    const std::int64_t block = block_of(tile, i), start = block * call.step,
                       count = keys_of(call, tile, block);
    const std::int64_t active =
        tile.visits == nullptr ? limit_all(first, scratch.visible, start, count)
                               : limit_listed(first, scratch.visible, tile.visits[i], start, count);
    if (active == 0) continue;
    for (std::int64_t h = 0; h < tile.heads; ++h) {
      const AttendContext<P> c = context_of<P>(call, tile, scratch, states[h], h);
      const bool few = P::kPack == 2 && active <= kFewColumns;
      // A lone token reads no value that it does not see, so that nothing but its own can reach it.
      const std::int64_t values =
          tile.tokens == 1 ? std::min(count, scratch.visible[0] - start) : count;
      Block<P> in_hand{.id = block, .start = start, .count = count, .values = values};
      in_hand.values_packed = Tiled<P> || !few || !kWordsAreStored<S>;
      if (!few || !keys_in_place<P, S>(c, in_hand)) {
        pack_keys<P, S>(c, start, count);
        in_hand.keys = c.k;
        in_hand.row = c.k_words;
      }
      if (call.attend && !Tiled<P> && dims_in_lanes(c)) {
        if constexpr (P::kPack == 2 && !kWordsAreStored<S>) {
          widen_values<P, S>(c, start, values);
        } else {
          list_rows<P, S>(c, call.v, c.head, start, values, c.values);
        }
        c.values[values] = c.values[values - 1];  // the partner of the last of an odd count
      } else if (call.attend && in_hand.values_packed) {
        pack_values<P, S>(c, start, values, 0, call.value_dim);
      }
      Ahead ahead;
      if (h + 1 < tile.heads) {
        ahead = look_ahead<P, S>(c, c.head + 1, start, count);
      } else if (i + 1 < tile.end) {
        const std::int64_t next = block_of(tile, i + 1);
        ahead = look_ahead<P, S>(c, tile.head, next * call.step, keys_of(call, tile, next));
      }
      visit_active(c, active, in_hand, ahead);
    }
  }
  for (std::int64_t h = 0; h < tile.heads && call.attend; ++h) {
    const AttendContext<P> c = context_of<P>(call, tile, scratch, states[h], h);
    if (dims_in_lanes(c)) turn_rows(c);
  }
}

/// f(storage) for the types of keys and values.
template <class F>
inline void with_keys(DType dtype, const F& f) {
  if (dtype == DType::E4M3) return f(StoredAs<DType::E4M3>{});
  if (dtype == DType::E2M1) return f(StoredAs<DType::E2M1>{});
  with_storage(dtype, [&](auto storage) { f(StoredAs<decltype(storage)::kType>{}); });
}

/// In fp32; by the level below, where this one adds products of bf16.
template <class Bf16, class S>
inline void attend_floats(const AttendCall& call, const AttendTile& tile,
                          const AttendScratch& scratch, const AttendState* states) {
  if constexpr (Bf16::kPack == 2) {
    Bf16::level_of_floats().attend.attend(call, tile, scratch, states);
  } else {
    attend_tile<F32Products, S>(call, tile, scratch, states);
  }
}

inline void attend(const AttendCall& call, const AttendTile& tile, const AttendScratch& scratch,
                   const AttendState* states) {
  with_keys(call.kv_dtype, [&](auto storage) {
    using S = decltype(storage);
    constexpr bool kWide =
        std::is_same_v<S, StoredAs<DType::F32>> || std::is_same_v<S, StoredAs<DType::F16>>;
    if constexpr (ProductsOfBf16::kPack == 2 && !kWide) {
      if (call.pairs) return attend_tile<ProductsOfBf16, S>(call, tile, scratch, states);
    }
    if constexpr (ProductsOfBf16::kPack == 1 || !kWordsAreStored<S>)
      attend_floats<ProductsOfBf16, S>(call, tile, scratch, states);
  });
}

// ---- joining pieces and writing rows ----

inline void merge_pieces(const AttendCall& call, const AttendTile& tile, const AttendState& into,
                         const AttendState& from) {
  const Vec scale = set1(scale_of(call)), bias = set1(tile.bias);
  for (std::int64_t at = 0; at < tile.tokens * call.group; at += kLanes) {
    const std::int64_t column = at / kLanes;
    const Vec m0 = load(into.m + at), m1 = load(from.m + at), m = max(m0, m1);
    const Vec a0 = decay(m0, m, scale, bias), a1 = decay(m1, m, scale, bias);
    store(into.m + at, m);
    store(into.l + at, fma(load(into.l + at), a0, mul(load(from.l + at), a1)));
    float* o = into.o + column * call.value_dim * kLanes;
    const float* p = from.o + column * call.value_dim * kLanes;
    for (std::int64_t d = 0; d < call.value_dim; ++d) {
      store(o + d * kLanes, fma(load(o + d * kLanes), a0, mul(load(p + d * kLanes), a1)));
    }
  }
}

inline void store_row(const AttendCall& call, std::byte* to, const float* row) {
  with_storage(call.out_dtype, [&](auto storage) {
    using S = StoredAs<decltype(storage)::kType>;
    for (std::int64_t d = 0; d < call.value_dim; d += kLanes)
      S::store_vec(reinterpret_cast<typename S::T*>(to) + d, load(row + d));
  });
}

/// Lanes with a sum of values that is not finite, though that of their weights is. Where the
/// weights are not, the row is NaN by its own scores: lanes share no key.
inline unsigned broken_lanes(const float* o, std::int64_t dims, Vec l) {
  Vec test = zero();  // a NaN or an infinity times zero is a NaN
  for (std::int64_t d = 0; d < dims; ++d) test = fma(load(o + d * kLanes), zero(), test);
  return bits(is_nan(test)) & ~bits(is_nan(mul(l, zero()))) & ~bits(equal(l, zero()));
}

inline std::int64_t finish_tile(const AttendCall& call, const AttendTile& tile,
                                const AttendScratch& scratch, const AttendState& state,
                                std::int32_t* suspects) {
  const std::int64_t rows = tile.tokens * call.group, item = size_in_bytes(call.out_dtype, 1);
  const float scale = scale_of(call);
  std::int64_t found = 0;
  for (std::int64_t column = 0; column * kLanes < rows; ++column) {
    float* o = state.o + column * call.value_dim * kLanes;
    const Vec l = load(state.l + column * kLanes);
    const Mask nothing = equal(l, zero());  // no weight: 0 even where a value is not finite
    const unsigned broken = broken_lanes(o, call.value_dim, l);
    const Vec inverse = div(set1(1.0f), l);
    for (std::int64_t d = 0; d < call.value_dim; ++d)
      store(o + d * kLanes, select(nothing, zero(), mul(load(o + d * kLanes), inverse)));
    for (std::int64_t d = 0; d < call.value_dim; d += kLanes) {
      transpose_words(reinterpret_cast<const Bits*>(o + d * kLanes), kLanes,
                      reinterpret_cast<Bits*>(scratch.s + d), call.value_dim);
    }
    for (int lane = 0; lane < kLanes && column * kLanes + lane < rows; ++lane) {
      const std::int64_t r = column * kLanes + lane, token = r / call.group, g = r % call.group;
      if ((broken >> lane & 1u) != 0 && (found == 0 || suspects[found - 1] != token))
        suspects[found++] = static_cast<std::int32_t>(token);
      const std::int64_t row = tile.request.q_begin + tile.token + token,
                         head = tile.head * call.group + g;
      store_row(call, call.out + (row * call.out_row + head * call.out_head) * item,
                scratch.s + lane * call.value_dim);
      if (call.lse == nullptr) continue;
      const float sum = state.l[r], top = state.m[r];
      call.lse[row * call.lse_row + head * call.lse_head] =
          sum == 0.0f ? -kInfinity
                      : static_cast<float>(
                            0.69314718055994530942 *
                            (double(top * scale) + double(tile.bias) + std::log2(double(sum))));
    }
  }
  return found;
}

/// The largest dims of the values that the token of the tile lists and sees: NaN where one is not
/// finite, 0 elsewhere.
template <class S>
inline void test_values(const AttendCall& call, const AttendTile& tile, Vec* test) {
  const std::int64_t visible = tile.request.visible_keys(tile.token);
  for (std::int64_t i = tile.begin; i < tile.end; ++i) {
    const std::int64_t start = block_of(tile, i) * call.step,
                       count = std::min(call.step, visible - start);
    for_each_segment<S>(call, tile, call.v, tile.head, start, count,
                        [&](std::int64_t, std::int64_t run, const auto* row, const auto* scales) {
                          for (std::int64_t j = 0; j < run; ++j, row += call.v.row) {
                            const auto scaling = S::scaling(call.v, scales + j * call.v.scale_row);
                            for (std::int64_t d = 0; d < call.value_dim; d += kLanes)
                              test[d / kLanes] =
                                  fma(S::values(row, d, scaling), zero(), test[d / kLanes]);
                          }
                        });
  }
}

inline bool overflows(const AttendCall& call, const AttendTile& tile, const AttendScratch& scratch,
                      const AttendState& state) {
  Vec test[kMaxDim / kLanes];
  std::fill_n(test, kMaxDim / kLanes, zero());
  with_keys(call.kv_dtype, [&](auto storage) { test_values<decltype(storage)>(call, tile, test); });
  float* finite = scratch.s;
  for (std::int64_t d = 0; d < call.value_dim; d += kLanes) store(finite + d, test[d / kLanes]);
  for (std::int64_t at = 0; at < call.group; at += kLanes) {
    const float* o = state.o + at * call.value_dim;
    const unsigned live = at + kLanes <= call.group ? ~0u : (1u << (call.group - at)) - 1u;
    const unsigned weighed = live & ~bits(is_nan(mul(load(state.l + at), zero())));
    for (std::int64_t d = 0; d < call.value_dim; ++d) {
      const Vec x = mul(load(o + d * kLanes), zero());
      if (finite[d] == 0.0f && (bits(is_nan(x)) & weighed) != 0) return true;
    }
  }
  return false;
}

constexpr AttendKernels attend_kernels() {
  return {.lanes = kLanes,
          .tile = kTile,
          .words_of_bf16 = ProductsOfBf16::kPack,
          .attend = attend,
          .merge = merge_pieces,
          .finish = finish_tile,
          .overflows = overflows};
}
