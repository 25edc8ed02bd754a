// SPDX-License-Identifier: MIT
// Gradients of attention (docs/kernels/cpu-backward.md). A chunk of up to kBackwardRows query rows
// meets one block of keys: scores and the gradients of weights come out with rows in the lanes, as
// in attention's register tile, and so do the weights and the gradients of scores. dq is their
// product with the keys, dk and dv are their products with q and dout, each a sum over what lies
// side by side. All in fp32.

namespace backward {

/// A chunk of rows against a block of keys, as the products need them.
struct Chunk {
  const BackwardCall& call;
  const BackwardScratch& at;
  std::int64_t head = 0;     // KV head
  std::int64_t keys = 0;     // of the block
  std::int64_t padded = 0;   // keys of whole register tiles
  std::int64_t rows = 0;     // live
  std::int64_t columns = 0;  // vectors of rows
  // Keys that every row sees, and that some row sees: rows of a chunk differ by few.
  std::int64_t least = 0, most = 0;
};

template <class F>
inline void with_floats(DType dtype, const F& f) {
  with_storage(dtype, [&](auto storage) { f(StoredAs<decltype(storage)::kType>{}); });
}

template <class S>
MSA_INLINE const typename S::T* row_of(const RowTensor& t, std::int64_t row, std::int64_t head) {
  return reinterpret_cast<const typename S::T*>(t.data) + row * t.row + head * t.head;
}

// ---- packing ----

/// Keys or values of a block as rows of fp32, zero behind the last.
MSA_PIECE void pack_block(const RowTensor& from, DType dtype, std::int64_t first, std::int64_t head,
                          std::int64_t dim, const Chunk& c, float* to) {
  with_floats(dtype, [&](auto storage) {
    using S = decltype(storage);
    for (std::int64_t key = 0; key < c.keys; ++key) {
      const auto* row = row_of<S>(from, first + key, head);
      for (std::int64_t d = 0; d < dim; d += kLanes)
        store(to + key * dim + d, S::load_vec(row + d));
    }
  });
  std::memset(to + c.keys * dim, 0,
              static_cast<std::size_t>((c.padded - c.keys) * dim) * sizeof *to);
}

/// Rows of the chunk in strips of kLanes dims, and transposed; zero behind the last.
MSA_PIECE void pack_rows(const RowTensor& from, DType dtype, std::int64_t q_begin, std::int64_t dim,
                         const Chunk& c, float* strips, float* lanes) {
  with_floats(dtype, [&](auto storage) {
    using S = decltype(storage);
    for (std::int64_t r = 0; r < c.rows; ++r) {
      const std::int64_t token = c.at.rows[r] / c.call.group, h = c.at.rows[r] % c.call.group;
      const auto* row = row_of<S>(from, q_begin + token, c.head * c.call.group + h);
      for (std::int64_t d = 0; d < dim; d += kLanes)
        store(strips + d * kBackwardRows + r * kLanes, S::load_vec(row + d));
    }
  });
  for (std::int64_t d = 0; d < dim; d += kLanes) {
    float* strip = strips + d * kBackwardRows;
    std::memset(strip + c.rows * kLanes, 0,
                static_cast<std::size_t>((c.columns * kLanes - c.rows) * kLanes) * sizeof *strip);
    for (std::int64_t column = 0; column < c.columns; ++column) {
      transpose_words(reinterpret_cast<const Bits*>(strip + column * kLanes * kLanes), kLanes,
                      reinterpret_cast<Bits*>(lanes + (column * dim + d) * kLanes), kLanes);
    }
  }
}

inline void pack_keys_of_tiles(const RowTensor& from, std::int64_t first, std::int64_t head,
                               std::int64_t dim, const Chunk& c, const PairedKeys& to) {
  c.call.tiles->pack_keys(row_of<StoredAs<DType::BF16>>(from, first, head), from.row, dim, c.keys,
                          c.padded, to);
}

inline void pack_rows_of_tiles(const RowTensor& from, std::int64_t q_begin, std::int64_t dim,
                               const Chunk& c, const std::uint16_t** rows, const PairedRows& to) {
  for (std::int64_t r = 0; r < c.rows; ++r) {
    const std::int64_t token = c.at.rows[r] / c.call.group, h = c.at.rows[r] % c.call.group;
    rows[r] = row_of<StoredAs<DType::BF16>>(from, q_begin + token, c.head * c.call.group + h);
  }
  c.call.tiles->pack_rows(rows, c.rows, dim, to);
}

/// The chunk's queries.
inline void pack_queries(std::int64_t q_begin, const Chunk& c) {
  if (c.call.tiles != nullptr) {
    pack_rows_of_tiles(c.call.q, q_begin, c.call.head_dim, c, c.at.tiles.q_rows, c.at.tiles.q);
  } else {
    pack_rows(c.call.q, c.call.dtype, q_begin, c.call.head_dim, c, c.at.q, c.at.q_lanes);
  }
}

/// What each row brings: its numbers, and how many keys of the block it sees. Rows whose lse says
/// that they weigh nothing see none; rows behind the last are whatever forces no mask.
MSA_PIECE void pack_numbers(const core::Request& request, std::int64_t start, Chunk& c) {
  float* lse = c.at.numbers;
  float* rest = c.at.numbers + kBackwardRows;
  c.least = c.keys;
  c.most = 0;
  for (std::int64_t r = 0; r < c.columns * kLanes; ++r) {
    lse[r] = rest[r] = 0.0f;
    c.at.limits[r] = static_cast<std::int32_t>(c.padded);
    if (r >= c.rows) continue;
    const std::int64_t token = c.at.rows[r] / c.call.group;
    const std::int64_t h = c.head * c.call.group + c.at.rows[r] % c.call.group;
    const std::int64_t row = request.q_begin + token;
    const float given = c.call.lse.at(row, h);
    lse[r] = given * kLog2E;
    rest[r] = c.call.rest != nullptr ? c.call.rest[row * c.call.heads + h] : 0.0f;
    std::int64_t limit = std::clamp<std::int64_t>(request.visible_keys(token) - start, 0, c.keys);
    if (given == -kInfinity) limit = 0;
    c.least = std::min(c.least, limit);
    c.most = std::max(c.most, limit);
    c.at.limits[r] = static_cast<std::int32_t>(limit);
  }
}

// ---- weights and the gradients of scores ----

/// Products of kTile packed keys from `key` on with Cols columns of rows, `steps` dims.
template <int Cols>
MSA_PIECE void multiply_keys(const float* keys, std::int64_t key, const float* const (&rows)[Cols],
                             std::int64_t steps, float* const (&to)[Cols]) {
  Touch nothing(nullptr, 0, 0, 1, 1);
  Vec acc[kTile][Cols];
#pragma GCC unroll 8
  for (int r = 0; r < kTile; ++r) {
    for (int col = 0; col < Cols; ++col) acc[r][col] = zero();
  }
  multiply<F32Products, Cols>(acc, keys + key * steps, 1, steps, rows, steps, nothing);
#pragma GCC unroll 8
  for (int r = 0; r < kTile; ++r) {
    for (int col = 0; col < Cols; ++col) store(to[col] + r * kLanes, acc[r][col]);
  }
}

/// From scores to weights, and from gradients of weights to those of scores, of a column and kTile
/// keys from `key` on. A key that a row does not see weighs exactly nothing, whatever it holds.
template <bool Masked>
MSA_INLINE void weigh_scores(const Chunk& c, std::int64_t column, std::int64_t key) {
  const std::int64_t row = column * kLanes, at = (column * c.padded + key) * kLanes;
  const Vec scale = set1(c.call.scale * kLog2E);
  const Vec lse = load(c.at.numbers + row), rest = load(c.at.numbers + kBackwardRows + row);
  const IVec limit = iload(c.at.limits + row);
  for (int r = 0; r < kTile; ++r) {
    float* const weight = c.at.p + at + r * kLanes;
    float* const gradient = c.at.ds + at + r * kLanes;
    Vec w = exp2(fma(load(weight), scale, sub(zero(), lse)));
    Vec g = mul(w, add(load(gradient), rest));
    if constexpr (Masked) {
      const Mask seen = igreater(limit, iset1(static_cast<std::int32_t>(key + r)));
      w = select(seen, w, zero());
      g = select(seen, g, zero());
    }
    store(weight, w);
    store(gradient, g);
  }
}

/// Of kTile keys from `key` on and Cols columns.
template <int Cols, bool Masked>
MSA_PIECE void weigh(const Chunk& c, std::int64_t column, std::int64_t key) {
  const std::int64_t dim = c.call.head_dim, value_dim = c.call.value_dim;
  const float *q[Cols], *dout[Cols];
  float *p[Cols], *ds[Cols];
  for (int col = 0; col < Cols; ++col) {
    q[col] = c.at.q_lanes + (column + col) * dim * kLanes;
    dout[col] = c.at.dout_lanes + (column + col) * value_dim * kLanes;
    p[col] = c.at.p + ((column + col) * c.padded + key) * kLanes;
    ds[col] = c.at.ds + ((column + col) * c.padded + key) * kLanes;
  }
  multiply_keys<Cols>(c.at.k, key, q, dim, p);
  multiply_keys<Cols>(c.at.v, key, dout, value_dim, ds);
  for (int col = 0; col < Cols; ++col) weigh_scores<Masked>(c, column + col, key);
}

/// Keys times rows by tiles, two columns from `column` on, to the same place in `to`.
MSA_INLINE void score_by_tiles(const Chunk& c, std::int64_t column, const PairedKeys& keys,
                               const PairedRows& rows, std::int64_t dim, float* to) {
  c.call.tiles->score({.keys = keys.halves,
                       .rows = rows.lanes + column * kLanes * round_up(dim, kTileKeys) / 2,
                       .columns = std::min<std::int64_t>(2, c.columns - column),
                       .dim = dim,
                       .padded = c.padded,
                       .seen = c.most,
                       .to = to + column * c.padded * kLanes});
}

MSA_PIECE void weigh_chunk_by_tiles(const Chunk& c) {
  const TileScratch& t = c.at.tiles;
  for (std::int64_t first = 0; first < c.columns; first += 2) {
    score_by_tiles(c, first, t.k, t.q, c.call.head_dim, c.at.p);
    score_by_tiles(c, first, t.v, t.dout, c.call.value_dim, c.at.ds);
    for (std::int64_t column = first; column < std::min(first + 2, c.columns); ++column) {
      for (std::int64_t key = 0; key < c.most; key += kTile) {
        key + kTile <= c.least ? weigh_scores<false>(c, column, key)
                               : weigh_scores<true>(c, column, key);
      }
    }
  }
}

template <int Cols>
MSA_INLINE void weigh_columns(const Chunk& c, std::int64_t column) {
  for (std::int64_t key = 0; key < c.most; key += kTile)
    key + kTile <= c.least ? weigh<Cols, false>(c, column, key) : weigh<Cols, true>(c, column, key);
}

MSA_PIECE void weigh_chunk(const Chunk& c) {
  std::int64_t column = 0;
  for (; column + 2 <= c.columns; column += 2) weigh_columns<2>(c, column);
  if (column < c.columns) weigh_columns<1>(c, column);
}

/// Packs the chunk's rows and works out its weights.
inline void open_chunk(const core::Request& request, std::int64_t start, Chunk& c) {
  c.columns = (c.rows + kLanes - 1) / kLanes;
  pack_numbers(request, start, c);
  pack_queries(request.q_begin, c);
  if (c.call.tiles != nullptr) {
    pack_rows_of_tiles(c.call.dout, request.q_begin, c.call.value_dim, c, c.at.tiles.dout_rows,
                       c.at.tiles.dout);
    return weigh_chunk_by_tiles(c);
  }
  pack_rows(c.call.dout, c.call.out_dtype, request.q_begin, c.call.value_dim, c, c.at.dout,
            c.at.dout_lanes);
  weigh_chunk(c);
}

// ---- dq ----

/// ds K of kTile dims from `d` on and Cols columns to c.at.turn, [Cols][D][lanes].
template <int Cols>
MSA_PIECE void turn_dims(const Chunk& c, std::int64_t column, std::int64_t d) {
  const std::int64_t dim = c.call.head_dim;
  const float* ds[Cols];
  for (int col = 0; col < Cols; ++col) ds[col] = c.at.ds + (column + col) * c.padded * kLanes;
  Vec acc[kTile][Cols];
#pragma GCC unroll 8
  for (int r = 0; r < kTile; ++r) {
    for (int col = 0; col < Cols; ++col) acc[r][col] = zero();
  }
  Touch nothing(nullptr, 0, 0, 1, 1);
  multiply<F32Products, Cols>(acc, c.at.k + d, dim, 1, ds, c.least, nothing);
  // A key that a row does not see may hold anything.
  for (std::int64_t key = c.least; key < c.most; ++key) {
    for (int col = 0; col < Cols; ++col) {
      const IVec limit = iload(c.at.limits + (column + col) * kLanes);
      const Mask seen = igreater(limit, iset1(static_cast<std::int32_t>(key)));
      const Vec x = load(ds[col] + key * kLanes);
      for (int r = 0; r < kTile; ++r) {
        const Vec k = select(seen, set1(c.at.k[key * dim + d + r]), zero());
        acc[r][col] = fma(k, x, acc[r][col]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTile; ++r) {
    for (int col = 0; col < Cols; ++col)
      store(c.at.turn + (col * dim + d + r) * kLanes, acc[r][col]);
  }
}

/// Adds column `column` of c.at.turn, its `col`-th, to the sums of its rows.
MSA_PIECE void add_turned(const Chunk& c, std::int64_t column, int col, std::int64_t token) {
  const std::int64_t dim = c.call.head_dim;
  Bits turned[kLanes * kLanes];
  const float* from = c.at.turn + col * dim * kLanes;
  const std::int64_t live = std::min<std::int64_t>(kLanes, c.rows - column * kLanes);
  for (std::int64_t d = 0; d < dim; d += kLanes) {
    transpose_words(reinterpret_cast<const Bits*>(from + d * kLanes), kLanes, turned, kLanes);
    for (std::int64_t lane = 0; lane < live; ++lane) {
      const std::int64_t row = c.at.rows[column * kLanes + lane] - token * c.call.group;
      float* sum = c.at.sums + row * dim + d;
      store(sum, add(load(sum), load(reinterpret_cast<const float*>(turned + lane * kLanes))));
    }
  }
}

/// By tiles over keys that all rows see, one after the other over those that some do not.
MSA_PIECE void add_to_queries_by_tiles(const Chunk& c, std::int64_t token) {
  const std::int64_t dim = c.call.head_dim, wide = round_up(dim, kTileKeys);
  const std::int64_t whole = c.least == c.keys ? c.keys : c.least / kTileKeys * kTileKeys;
  c.call.tiles->queries({.weights = c.at.ds,
                         .strips = c.at.tiles.k.strips,
                         .rows = c.rows,
                         .keys = whole,
                         .padded = c.padded,
                         .dim = dim,
                         .parts = c.at.tiles.parts,
                         .part = kBackwardRows * c.padded / 2,
                         .to = c.at.turn});
  for (std::int64_t r = 0; r < c.rows; ++r) {
    const float* const ds = c.at.ds + r / kLanes * c.padded * kLanes + r % kLanes;
    float* const sum = c.at.sums + (c.at.rows[r] - token * c.call.group) * dim;
    for (std::int64_t d = 0; d < dim; d += kLanes) {
      Vec x = add(load(sum + d), load(c.at.turn + r * dim + d));
      for (std::int64_t key = whole; key < c.at.limits[r]; ++key)
        x = fma(set1(ds[key * kLanes]), load_bf16(c.at.tiles.k.halves + key * wide + d), x);
      store(sum + d, x);
    }
  }
}

MSA_PIECE void add_to_queries(const Chunk& c, std::int64_t token) {
  if (c.call.tiles != nullptr) return add_to_queries_by_tiles(c, token);
  for (std::int64_t column = 0; column < c.columns; column += 2) {
    const bool two = column + 1 < c.columns;
    for (std::int64_t d = 0; d < c.call.head_dim; d += kTile) {
      two ? turn_dims<2>(c, column, d) : turn_dims<1>(c, column, d);
    }
    add_turned(c, column, 0, token);
    if (two) add_turned(c, column + 1, 1, token);
  }
}

/// Chunk after chunk of `count` tokens' rows, before they are packed; `token_of(n)` is the n-th, in
/// the request.
template <class TokenOf, class F>
inline void for_each_rows(std::int64_t count, Chunk& c, const TokenOf& token_of, const F& f) {
  const std::int64_t rows = count * c.call.group;
  for (std::int64_t done = 0; done < rows; done += kBackwardRows) {
    c.rows = std::min(kBackwardRows, rows - done);
    for (std::int64_t r = 0; r < c.rows; ++r) {
      const std::int64_t n = (done + r) / c.call.group, h = (done + r) % c.call.group;
      c.at.rows[r] = token_of(n) * c.call.group + h;
    }
    f();
  }
}

/// The same, packed and weighed.
template <class TokenOf, class F>
inline void for_each_chunk(const core::Request& request, std::int64_t start, std::int64_t count,
                           Chunk& c, const TokenOf& token_of, const F& f) {
  for_each_rows(count, c, token_of, [&] {
    open_chunk(request, start, c);
    f();
  });
}

inline Chunk open_block(const BackwardCall& call, const BackwardScratch& scratch,
                        const core::Request& request, std::int64_t head, std::int64_t start) {
  Chunk c{.call = call, .at = scratch, .head = head};
  c.keys = std::min(call.step, request.seqlen_k - start);
  c.padded = round_up(c.keys, call.tiles != nullptr ? kTileKeys : kTile);
  const std::int64_t first = request.k_begin + start;
  if (call.tiles != nullptr) {
    pack_keys_of_tiles(call.k, first, head, call.head_dim, c, scratch.tiles.k);
    if (call.v.data != nullptr)
      pack_keys_of_tiles(call.v, first, head, call.value_dim, c, scratch.tiles.v);
    return c;
  }
  pack_block(call.k, call.dtype, first, head, call.head_dim, c, scratch.k);
  if (call.v.data != nullptr)
    pack_block(call.v, call.dtype, first, head, call.value_dim, c, scratch.v);
  return c;
}

/// A tile's sums, times the scale, to dq.
MSA_PIECE void write_rows(const BackwardCall& call, const QueryTile& tile, const float* sums) {
  const std::int64_t dim = call.head_dim, rows = tile.tokens * call.group;
  const Vec scale = set1(call.scale);
  with_floats(call.gradient_dtype, [&](auto storage) {
    using S = decltype(storage);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t row = tile.request.q_begin + tile.token + r / call.group;
      const std::int64_t head = tile.head * call.group + r % call.group;
      auto* to = const_cast<typename S::T*>(row_of<S>(call.dq, row, head));
      for (std::int64_t d = 0; d < dim; d += kLanes)
        S::store_vec(to + d, mul(load(sums + r * dim + d), scale));
    }
  });
}

inline void queries(const BackwardCall& call, const QueryTile& tile, BackwardScratch scratch) {
  // Nobody multiplies weights by rows here.
  scratch.tiles.q.strips = scratch.tiles.dout.strips = nullptr;
  const std::int64_t dim = call.head_dim, rows = tile.tokens * call.group;
  std::memset(scratch.sums, 0, static_cast<std::size_t>(rows * dim) * sizeof *scratch.sums);
  for (std::int64_t i = 0; i < tile.count; ++i) {
    const Visit& visit = tile.visits[i];
    const std::int64_t start = visit.block * call.step;
    Chunk c = open_block(call, scratch, tile.request, tile.head, start);
    for_each_chunk(
        tile.request, start, visit.count, c,
        [&](std::int64_t n) { return tile.token + tile.visit_tokens[visit.first + n]; },
        [&] { add_to_queries(c, tile.token); });
  }
  write_rows(call, tile, scratch.sums);
}

// ---- dk and dv ----

/// sums[key][dim] += weights[key][row] rows[row][dim] for kTile keys from `key` on and up to two
/// vectors of dims from `d` on.
template <int Vectors>
MSA_PIECE void add_products(const Chunk& c, const float* weights, const float* strips,
                            std::int64_t key, std::int64_t d, std::int64_t dim, float* sums) {
  Vec acc[kTile][Vectors];
  float* const to = sums + key * dim + d;
#pragma GCC unroll 8
  for (int r = 0; r < kTile; ++r) {
    for (int n = 0; n < Vectors; ++n) acc[r][n] = load(to + r * dim + n * kLanes);
  }
  Touch nothing(nullptr, 0, 0, 1, 1);
  for (std::int64_t column = 0; column < c.columns; ++column) {
    const std::int64_t first = column * kLanes;
    const std::int64_t live = std::min<std::int64_t>(kLanes, c.rows - first);
    const float* rows[Vectors];
    for (int n = 0; n < Vectors; ++n)
      rows[n] = strips + (d + n * kLanes) * kBackwardRows + first * kLanes;
    multiply<F32Products, Vectors>(acc, weights + (column * c.padded + key) * kLanes, 1, kLanes,
                                   rows, live, nothing);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTile; ++r) {
    for (int n = 0; n < Vectors; ++n) store(to + r * dim + n * kLanes, acc[r][n]);
  }
}

/// The same for keys from `first` on, which some rows do not see: what such a row holds must not
/// meet them. dims(r, d) is a vector of row r.
template <class Dims>
MSA_PIECE void add_seen(const Chunk& c, const float* weights, std::int64_t first, std::int64_t dim,
                        float* sums, const Dims& dims) {
  for (std::int64_t r = 0; r < c.rows; ++r) {
    const float* weight = weights + r / kLanes * c.padded * kLanes + r % kLanes;
    for (std::int64_t key = first; key < c.at.limits[r]; ++key) {
      const Vec w = set1(weight[key * kLanes]);
      float* const to = sums + key * dim;
      for (std::int64_t d = 0; d < dim; d += kLanes)
        store(to + d, fma(w, dims(r, d), load(to + d)));
    }
  }
}

MSA_PIECE void add_to_keys(const Chunk& c, const float* weights, const float* strips,
                           std::int64_t dim, float* sums) {
  // Keys of whole tiles that all rows see; behind the last key of all there is nobody to spoil.
  const std::int64_t whole = c.least == c.keys ? c.padded : c.least / kTile * kTile;
  for (std::int64_t d = 0; d < dim; d += 2 * kLanes) {
    const bool two = d + kLanes < dim;
    for (std::int64_t key = 0; key < whole; key += kTile) {
      two ? add_products<2>(c, weights, strips, key, d, dim, sums)
          : add_products<1>(c, weights, strips, key, d, dim, sums);
    }
  }
  add_seen(c, weights, whole, dim, sums, [&](std::int64_t r, std::int64_t d) {
    return load(strips + d * kBackwardRows + r * kLanes);
  });
}

MSA_PIECE void add_to_keys_by_tiles(const Chunk& c, const float* weights, const PairedRows& packed,
                                    const std::uint16_t* const* rows, std::int64_t dim,
                                    float* sums) {
  const std::int64_t seen = c.least == c.keys ? round_up(c.keys, 16) : c.least / 16 * 16;
  c.call.tiles->keys({.weights = weights,
                      .strips = packed.strips,
                      .rows = c.rows,
                      .keys = seen,
                      .padded = c.padded,
                      .dim = dim,
                      .parts = c.at.tiles.parts,
                      .part = kBackwardRows * c.padded / 2,
                      .to = sums});
  add_seen(c, weights, seen, dim, sums,
           [&](std::int64_t r, std::int64_t d) { return load_bf16(rows[r] + d); });
}

/// Gradients of scores times queries.
inline void add_queries_to_keys(const Chunk& c, float* sums) {
  const std::int64_t dim = c.call.head_dim;
  if (c.call.tiles != nullptr) {
    add_to_keys_by_tiles(c, c.at.ds, c.at.tiles.q, c.at.tiles.q_rows, dim, sums);
  } else {
    add_to_keys(c, c.at.ds, c.at.q, dim, sums);
  }
}

/// Weights times gradients of outputs.
inline void add_outputs_to_keys(const Chunk& c, float* sums) {
  const std::int64_t dim = c.call.value_dim;
  if (c.call.tiles != nullptr) {
    add_to_keys_by_tiles(c, c.at.p, c.at.tiles.dout, c.at.tiles.dout_rows, dim, sums);
  } else {
    add_to_keys(c, c.at.p, c.at.dout, dim, sums);
  }
}

/// Sums times `factor`, or added to what lies there.
MSA_PIECE void write_block(const BackwardCall& call, const RowTensor& gradient, std::int64_t first,
                           std::int64_t head, std::int64_t keys, std::int64_t dim, float factor,
                           const float* sums) {
  if (gradient.data == nullptr) return;
  const Vec scale = set1(factor);
  with_floats(call.gradient_dtype, [&](auto storage) {
    using S = decltype(storage);
    for (std::int64_t key = 0; key < keys; ++key) {
      auto* to = const_cast<typename S::T*>(row_of<S>(gradient, first + key, head));
      for (std::int64_t d = 0; d < dim; d += kLanes) {
        Vec x = mul(load(sums + key * dim + d), scale);
        if (call.accumulate) x = add(S::load_vec(to + d), x);
        S::store_vec(to + d, x);
      }
    }
  });
}

inline void keys(const BackwardCall& call, const KeyBlock& block, BackwardScratch scratch) {
  scratch.tiles.k.strips = nullptr;  // nor by keys here
  const std::int64_t start = block.block * call.step, dim = call.head_dim;
  Chunk c = open_block(call, scratch, block.request, block.head, start);
  float* const dk = scratch.sums;
  float* const dv = scratch.sums + c.padded * dim;
  std::memset(dk, 0, static_cast<std::size_t>(c.padded * (dim + call.value_dim)) * sizeof *dk);
  for_each_chunk(
      block.request, start, block.count, c,
      [&](std::int64_t n) {
        return block.tokens != nullptr ? std::int64_t{block.tokens[n]} : block.first_token + n;
      },
      [&] {
        if (call.dk.data != nullptr) add_queries_to_keys(c, dk);
        if (call.dv.data != nullptr) add_outputs_to_keys(c, dv);
      });
  const std::int64_t first = block.request.k_begin + start;
  write_block(call, call.dk, first, block.head, c.keys, dim, call.scale, dk);
  write_block(call, call.dv, first, block.head, c.keys, call.value_dim, 1.0f, dv);
}

// ---- what is known of a row before its keys ----

inline void rest(const BackwardCall& call, std::int64_t begin, std::int64_t end) {
  with_floats(call.out_dtype, [&](auto storage) {
    using S = decltype(storage);
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t h = 0; h < call.heads; ++h) {
        const auto* out = row_of<S>(call.out, row, h);
        const auto* dout = row_of<S>(call.dout, row, h);
        Vec sum = zero();
        for (std::int64_t d = 0; d < call.value_dim; d += kLanes)
          sum = fma(S::load_vec(out + d), S::load_vec(dout + d), sum);
        float lanes[kLanes], delta = 0.0f;
        store(lanes, sum);
        for (const float lane : lanes) delta += lane;
        const float given = call.dlse.data != nullptr ? call.dlse.at(row, h) : 0.0f;
        call.rest[row * call.heads + h] = given - delta;
      }
    }
  });
}

constexpr BackwardKernels kernels() {
  return {.lanes = kLanes, .tile = kTile, .rest = rest, .queries = queries, .keys = keys};
}

}  // namespace backward
