// SPDX-License-Identifier: MIT
// The loss of the index branch and its gradients (docs/kernels/cpu-backward.md): chunks of query
// tokens meet a block of keys twice, as the rows of attention, whose weights are averaged over the
// heads of a group, and as rows of the index. What the index's softmax is off by takes the place of
// the gradients of scores in the products of a backward pass. Rows of attention lie head after
// head, so that the lanes of a token's heads are the same lane, and their sum one of vectors.

namespace index_loss {

using backward::Chunk;

/// Unscaled scores of Cols columns to c.at.ds.
template <int Cols>
MSA_PIECE void score_columns(const Chunk& c, std::int64_t column) {
  const std::int64_t dim = c.call.head_dim;
  const float* rows[Cols];
  for (int col = 0; col < Cols; ++col) rows[col] = c.at.q_lanes + (column + col) * dim * kLanes;
  for (std::int64_t key = 0; key < c.most; key += kTile) {
    float* to[Cols];
    for (int col = 0; col < Cols; ++col)
      to[col] = c.at.ds + ((column + col) * c.padded + key) * kLanes;
    backward::multiply_keys<Cols>(c.at.k, key, rows, dim, to);
  }
}

/// Of all the chunk's rows, which are packed first; rows behind the last see no key.
MSA_PIECE void score_rows(const core::Request& request, std::int64_t start, Chunk& c) {
  c.columns = (c.rows + kLanes - 1) / kLanes;
  backward::pack_numbers(request, start, c);
  std::fill(c.at.limits + c.rows, c.at.limits + c.columns * kLanes, 0);
  backward::pack_queries(request.q_begin, c);
  std::int64_t column = 0;
  for (; c.call.tiles != nullptr && column < c.columns; column += 2)
    backward::score_by_tiles(c, column, c.at.tiles.k, c.at.tiles.q, c.call.head_dim, c.at.ds);
  for (; column + 2 <= c.columns; column += 2) score_columns<2>(c, column);
  if (column < c.columns) score_columns<1>(c, column);
}

/// exp(scale score - lse) where the row sees the key, exactly 0 elsewhere.
MSA_INLINE Vec weight_of(const Chunk& c, std::int64_t row, std::int64_t key, Vec score) {
  const Vec lse = load(c.at.numbers + row);
  const Vec w = exp2(fma(score, set1(c.call.scale * kLog2E), sub(zero(), lse)));
  const Mask seen = igreater(iload(c.at.limits + row), iset1(static_cast<std::int32_t>(key)));
  return select(seen, w, zero());
}

/// Adds the weights of the teacher's chunk to `mean`, which has `columns` vectors of tokens.
MSA_PIECE void add_weights(const Chunk& c, std::int64_t columns, float* mean) {
  for (std::int64_t column = 0; column < c.columns; ++column) {
    const float* scores = c.at.ds + column * c.padded * kLanes;
    float* const to = mean + column % columns * c.padded * kLanes;
    for (std::int64_t key = 0; key < c.most; ++key) {
      float* const sum = to + key * kLanes;
      store(sum, add(load(sum), weight_of(c, column * kLanes, key, load(scores + key * kLanes))));
    }
  }
}

/// Adds up lanes that stand for the same one of `tokens`.
MSA_PIECE void fold_lanes(float* mean, std::int64_t keys, std::int64_t tokens) {
  for (std::int64_t key = 0; key < keys; ++key, mean += kLanes) {
    for (std::int64_t half = kLanes / 2; half >= tokens; half /= 2) {
      for (std::int64_t lane = 0; lane < half; ++lane) mean[lane] += mean[lane + half];
    }
  }
}

/// Of `count` tokens: as many as fill lanes without a rest, or a power of two of which some do.
inline std::int64_t padded_tokens(std::int64_t count) {
  if (count > kLanes) return round_up(count, kLanes);
  std::int64_t tokens = 1;
  while (tokens < count) tokens *= 2;
  return tokens;
}

/// The teacher of the student's chunk, whose rows are tokens: the mean over the heads of a group.
/// Tokens behind the last are the last one.
MSA_PIECE void teach(const IndexLossCall& call, const core::Request& request, std::int64_t start,
                     const Chunk& student, Chunk& teacher, float* mean) {
  std::memset(mean, 0,
              static_cast<std::size_t>(student.columns * student.padded * kLanes) * sizeof *mean);
  const std::int64_t group = call.teacher.group, tokens = padded_tokens(student.rows);
  const std::int64_t at_once = kBackwardRows / tokens;
  for (std::int64_t head = 0; head < group; head += at_once) {
    teacher.rows = tokens * std::min(at_once, group - head);
    for (std::int64_t r = 0; r < teacher.rows; ++r) {
      const std::int64_t token = student.at.rows[std::min(r % tokens, student.rows - 1)];
      teacher.at.rows[r] = token * group + head + r / tokens;
    }
    score_rows(request, start, teacher);
    add_weights(teacher, student.columns, mean);
  }
  if (tokens < kLanes) fold_lanes(mean, student.most, tokens);
  const Vec share = set1(1.0f / static_cast<float>(group));
  for (std::int64_t n = 0; n < student.columns * student.padded; ++n)
    store(mean + n * kLanes, mul(load(mean + n * kLanes), share));
}

/// The natural logarithm of a normal number above 0, to two roundings; without a branch, for loops
/// over lanes that compilers turn into vectors.
MSA_INLINE float log_of(float x) {
  const auto word = std::bit_cast<std::uint32_t>(x);
  // x = m 2^exponent, m from the root of 1/2 to that of 2; log m = 2 artanh((m - 1) / (m + 1)).
  const auto exponent = static_cast<std::int32_t>(word - 0x3f3504f3u) >> 23;
  const auto m = std::bit_cast<float>(word - (static_cast<std::uint32_t>(exponent) << 23));
  const float s = (m - 1.0f) / (m + 1.0f), t = s * s;
  const float series = 1.0f + t * (1.0f / 3 + t * (1.0f / 5 + t * (1.0f / 7 + t * (1.0f / 9))));
  return static_cast<float>(exponent) * 0.693147181f + 2.0f * s * series;
}

/// What each row's terms add to its loss.
MSA_PIECE void add_losses(const Chunk& c, const float* mean, double* loss) {
  for (std::int64_t first = 0; first < c.rows; first += kLanes) {
    const std::int64_t block = first / kLanes * c.padded * kLanes;
    double sums[kLanes] = {};
    float lse[kLanes];
    std::int32_t limits[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      lse[lane] = c.at.numbers[first + lane] / kLog2E;
      limits[lane] = c.at.limits[first + lane];
    }
    for (std::int64_t key = 0; key < c.most; ++key) {
      const float* p = mean + block + key * kLanes;
      const float* score = c.at.ds + block + key * kLanes;
      for (int lane = 0; lane < kLanes; ++lane) {
        const float student = score[lane] * c.call.scale - lse[lane];
        const double term = double(p[lane]) * double(log_of(p[lane]) - student);
        sums[lane] += (key < limits[lane]) & (p[lane] != 0.0f) ? term : 0.0;
      }
    }
    for (std::int64_t row = first; row < std::min<std::int64_t>(first + kLanes, c.rows); ++row)
      loss[row] = sums[row - first];
  }
}

/// What the student is off by, times the row's weight, over its scores.
MSA_PIECE void subtract(const IndexLossCall& call, const core::Request& request, const Chunk& c,
                        const float* mean) {
  for (std::int64_t column = 0; column < c.columns; ++column) {
    const std::int64_t row = column * kLanes;
    float weights[kLanes] = {};
    for (std::int64_t lane = 0; lane < kLanes && row + lane < c.rows; ++lane) {
      const std::int64_t at = request.q_begin + c.at.rows[row + lane];
      weights[lane] = call.row_weight != nullptr ? call.row_weight[at * call.weight_row] : 1.0f;
    }
    const Vec weight = load(weights);
    const IVec limit = iload(c.at.limits + row);
    for (std::int64_t key = 0; key < c.most; ++key) {
      float* const at = c.at.ds + (column * c.padded + key) * kLanes;
      const Vec off =
          sub(weight_of(c, row, key, load(at)), load(mean + (column * c.padded + key) * kLanes));
      const Mask seen = igreater(limit, iset1(static_cast<std::int32_t>(key)));
      store(at, select(seen, mul(weight, off), zero()));
    }
  }
}

/// A block under an index head, packed for the student.
inline Chunk open_student(const IndexLossCall& call, const IndexLossScratch& scratch,
                          const core::Request& request, std::int64_t head, std::int64_t start) {
  Chunk c = backward::open_block(call.student, scratch.student, request, head / call.shared, start);
  c.head = head;
  return c;
}

/// Calls visit(first, count, start, opens) for pieces of the tokens of each block that the tile
/// visits.
template <class Visitor>
inline void for_each_piece(const IndexLossCall& call, const QueryTile& tile, const Visitor& visit) {
  for (std::int64_t i = 0; i < tile.count; ++i) {
    const Visit& v = tile.visits[i];
    for (std::int64_t done = 0; done < v.count; done += kBackwardRows) {
      visit(v.first + done, std::min<std::int64_t>(kBackwardRows, v.count - done),
            v.block * call.student.step, done == 0);
    }
  }
}

/// Adds a column of scores to the running sums of its rows, which are `tokens` of the tile.
MSA_PIECE void add_to_sums(const Chunk& c, std::int64_t column, const std::int32_t* tokens,
                           const IndexLossScratch& scratch) {
  const std::int64_t first = column * kLanes;
  const std::int64_t live = std::min<std::int64_t>(kLanes, c.rows - first);
  float lanes[2][kLanes] = {};
  for (std::int64_t lane = 0; lane < live; ++lane) {
    lanes[0][lane] = scratch.best[tokens[first + lane]];
    lanes[1][lane] = scratch.sum[tokens[first + lane]];
  }
  const Vec scale = set1(c.call.scale * kLog2E), lowest = set1(-kInfinity);
  const IVec limit = iload(c.at.limits + first);
  const float* scores = c.at.ds + column * c.padded * kLanes;
  const auto score = [&](std::int64_t key) {
    const Mask seen = igreater(limit, iset1(static_cast<std::int32_t>(key)));
    return select(seen, mul(load(scores + key * kLanes), scale), lowest);
  };
  const Vec before = load(lanes[0]);
  Vec best = before;
  for (std::int64_t key = 0; key < c.most; ++key) best = max(score(key), best);
  // A NaN is dropped here and comes back with its exponential.
  const Vec base = select(equal(best, lowest), zero(), best);
  Vec sum = mul(load(lanes[1]), exp2(sub(before, base)));
  for (std::int64_t key = 0; key < c.most; ++key) sum = add(sum, exp2(sub(score(key), base)));
  store(lanes[0], best);
  store(lanes[1], sum);
  for (std::int64_t lane = 0; lane < live; ++lane) {
    scratch.best[tokens[first + lane]] = lanes[0][lane];
    scratch.sum[tokens[first + lane]] = lanes[1][lane];
  }
}

/// The logarithms of the student's sums, in a first pass over the tile's keys.
inline void write_lse(const IndexLossCall& call, const QueryTile& tile,
                      const IndexLossScratch& scratch) {
  for (std::int64_t t = 0; t < tile.tokens; ++t) {
    scratch.best[t] = -kInfinity;
    scratch.sum[t] = 0.0f;
    // Every key that a row sees takes part.
    call.index_lse[(tile.request.q_begin + tile.token + t) * call.student.heads + tile.head] = 0.0f;
  }
  Chunk c{.call = call.student, .at = scratch.student};
  for_each_piece(
      call, tile, [&](std::int64_t first, std::int64_t count, std::int64_t start, bool opens) {
        if (opens) {
          const Chunk block = open_student(call, scratch, tile.request, tile.head, start);
          c.head = block.head;
          c.keys = block.keys;
          c.padded = block.padded;
        }
        c.rows = count;
        for (std::int64_t n = 0; n < count; ++n)
          c.at.rows[n] = tile.token + tile.visit_tokens[first + n];
        score_rows(tile.request, start, c);
        for (std::int64_t column = 0; column < c.columns; ++column)
          add_to_sums(c, column, tile.visit_tokens + first, scratch);
      });
  for (std::int64_t t = 0; t < tile.tokens; ++t) {
    // Minus infinity where every score is, NaN where one is, were it the only one.
    const double lse = double(scratch.best[t]) + std::log2(double(scratch.sum[t]));
    call.index_lse[(tile.request.q_begin + tile.token + t) * call.student.heads + tile.head] =
        static_cast<float>(lse / double(kLog2E));
  }
}

inline void rows(const IndexLossCall& call, const QueryTile& tile,
                 const IndexLossScratch& scratch) {
  write_lse(call, tile, scratch);
  const bool gradients = call.student.dq.data != nullptr;
  if (!gradients && call.loss == nullptr) return;
  const std::int64_t dim = call.student.head_dim;
  float* const sums = scratch.student.sums;
  std::memset(sums, 0, static_cast<std::size_t>(tile.tokens * dim) * sizeof *sums);
  std::fill_n(scratch.loss, tile.tokens, 0.0);
  Chunk student{.call = call.student, .at = scratch.student};
  Chunk teacher{.call = call.teacher, .at = scratch.teacher};
  for_each_piece(
      call, tile, [&](std::int64_t first, std::int64_t count, std::int64_t start, bool opens) {
        if (opens) {
          const Chunk block = open_student(call, scratch, tile.request, tile.head, start);
          backward::open_block(call.teacher, scratch.teacher, tile.request, tile.head, start);
          student.head = teacher.head = tile.head;
          student.keys = teacher.keys = block.keys;
          student.padded = teacher.padded = block.padded;
        }
        student.rows = count;
        for (std::int64_t n = 0; n < count; ++n)
          student.at.rows[n] = tile.token + tile.visit_tokens[first + n];
        score_rows(tile.request, start, student);
        teach(call, tile.request, start, student, teacher, scratch.mean);
        if (call.loss != nullptr) {
          double losses[kBackwardRows];
          add_losses(student, scratch.mean, losses);
          for (std::int64_t n = 0; n < count; ++n)
            scratch.loss[tile.visit_tokens[first + n]] += losses[n];
        }
        if (!gradients) return;
        subtract(call, tile.request, student, scratch.mean);
        backward::add_to_queries(student, tile.token);
      });
  if (gradients) backward::write_rows(call.student, tile, sums);
  for (std::int64_t t = 0; call.loss != nullptr && t < tile.tokens; ++t) {
    const std::int64_t row = tile.request.q_begin + tile.token + t;
    call.loss[row * call.loss_row + tile.head * call.loss_head] =
        static_cast<float>(scratch.loss[t]);
  }
}

inline void keys(const IndexLossCall& call, const KeyBlock& block, const IndexLossScratch& scratch,
                 bool first, bool last) {
  const std::int64_t start = block.block * call.student.step, dim = call.student.head_dim;
  Chunk student = open_student(call, scratch, block.request, block.head, start);
  Chunk teacher =
      backward::open_block(call.teacher, scratch.teacher, block.request, block.head, start);
  float* const sums = scratch.student.sums;
  if (first) std::memset(sums, 0, static_cast<std::size_t>(student.padded * dim) * sizeof *sums);
  for (std::int64_t done = 0; done < block.count; done += kBackwardRows) {
    student.rows = std::min<std::int64_t>(kBackwardRows, block.count - done);
    for (std::int64_t n = 0; n < student.rows; ++n)
      student.at.rows[n] = block.tokens != nullptr ? std::int64_t{block.tokens[done + n]}
                                                   : block.first_token + done + n;
    score_rows(block.request, start, student);
    teach(call, block.request, start, student, teacher, scratch.mean);
    subtract(call, block.request, student, scratch.mean);
    backward::add_queries_to_keys(student, sums);
  }
  if (!last) return;
  backward::write_block(call.student, call.student.dk, block.request.k_begin + start,
                        block.head / call.shared, student.keys, dim, call.student.scale, sums);
}

constexpr IndexLossKernels kernels() { return {.rows = rows, .keys = keys}; }

}  // namespace index_loss
