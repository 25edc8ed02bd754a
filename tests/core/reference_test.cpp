// SPDX-License-Identifier: MIT
// The oracle against cases worked out by hand, and against itself in another form: ragged and
// paged, whole and sharded, sparse with every block and dense.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "msa/msa.h"
#include "reference/number.h"
#include "tests/core/grid.h"

namespace msa::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNaN = std::nanf("");
const float kLog3 = std::log(3.0f);

Settings reference() { return {.block_size = 16, .options = {.backend = "reference"}}; }

void expect_near(const std::vector<float>& given, const std::vector<float>& expected,
                 float tolerance = 1e-6f) {
  ASSERT_EQ(given.size(), expected.size());
  for (std::size_t i = 0; i < given.size(); ++i) {
    if (std::isnan(expected[i])) {
      EXPECT_TRUE(std::isnan(given[i])) << i << ": " << given[i];
    } else if (std::isinf(expected[i])) {
      EXPECT_EQ(given[i], expected[i]) << i;
    } else {
      EXPECT_NEAR(given[i], expected[i], tolerance) << i;
    }
  }
}

// Bit equality, NaN included.
void expect_same(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])))
        << i << ": " << a[i] << ", " << b[i];
  }
}

// ---- dense attention ----

struct Dense {
  Floats q{{3, 1, 1}, {1, 1, 1}};
  Floats k{{3, 1, 1}, {0, kLog3, 0}};
  Floats v{{3, 1, 2}, {1, 10, 5, 50, 9, 90}};
  Floats out{{3, 1, 2}};
  Floats lse{{3, 1}};
  void run(Settings settings = reference(), Batch batch = {}) {
    settings.softmax_scale = 1.0f;
    dense_attention({q.tensor(), k.tensor(), v.tensor(), batch, out.tensor(), lse.tensor()},
                    settings);
  }
};

TEST(DenseByHand, Causal) {
  Dense d;
  d.run();
  // Weights 1; 1 and 3; 1, 3 and 1.
  expect_near(d.out.values(), {1, 10, 4, 40, 5, 50}, 1e-5f);
  expect_near(d.lse.values(), {0, std::log(4.0f), std::log(5.0f)});
}

TEST(DenseByHand, NotCausal) {
  Dense d;
  Settings s = reference();
  s.causal = false;
  d.run(s);
  expect_near(d.out.values(), {5, 50, 5, 50, 5, 50}, 1e-5f);
}

TEST(DenseByHand, OffsetsMoveTheRows) {
  Dense d;
  const Ints offsets({1}, {-1});
  d.run(reference(), {.q_offsets = offsets.tensor()});
  expect_near(d.out.values(), {0, 0, 1, 10, 4, 40}, 1e-5f);
  expect_near(d.lse.values(), {-kInf, 0, std::log(4.0f)});
}

TEST(DenseByHand, VisibleNaNAndInfinityMakeTheRowNaN) {
  for (const float bad : {kNaN, kInf}) {
    Dense d;
    d.k(1) = bad;
    d.run();
    expect_near(d.out.values(), {1, 10, kNaN, kNaN, kNaN, kNaN});
    expect_near(d.lse.values(), {0, kNaN, kNaN});
  }
}

TEST(DenseByHand, ScoresOfMinusInfinity) {
  Dense d;
  d.k(0) = -kInf;
  d.run();
  // Row 0 sees nothing but -inf, the others drop key 0.
  expect_near(d.out.values(), {0, 0, 5, 50, 6, 60}, 1e-5f);
  expect_near(d.lse.values(), {-kInf, kLog3, std::log(4.0f)});
}

TEST(DenseByHand, NonFiniteValueTouchesItsElementOnly) {
  Dense d;
  d.v(1, 0, 1) = kInf;
  d.run();
  EXPECT_EQ(d.out(0, 0, 1), 10);
  EXPECT_FALSE(std::isfinite(d.out(1, 0, 1)));
  EXPECT_FALSE(std::isfinite(d.out(2, 0, 1)));
  EXPECT_NEAR(d.out(2, 0, 0), 5, 1e-5f);
}

TEST(DenseByHand, QueryHeadsShareTheirGroupsKeys) {
  Floats q({1, 4, 1}, 0.0f), k({1, 2, 1}, 0.0f), v({1, 2, 1}, {7, 8}), out({1, 4, 1});
  dense_attention({q.tensor(), k.tensor(), v.tensor(), {}, out.tensor()}, reference());
  EXPECT_EQ(out.values(), (std::vector<float>{7, 7, 8, 8}));
}

TEST(DenseByHand, DefaultScaleIsOneOverRootOfD) {
  Floats q({1, 1, 4}, 1.0f), k({2, 1, 4}, {0, 0, 0, 0, 1, 1, 1, 1}), v({2, 1, 1}, {0, 1});
  Floats out({1, 1, 1});
  dense_attention({q.tensor(), k.tensor(), v.tensor(), {}, out.tensor()}, reference());
  EXPECT_NEAR(out(0), std::exp(2.0f) / (1 + std::exp(2.0f)), 1e-6f);
}

TEST(DenseByHand, BlockMaximaAloneAndBeside) {
  Floats q({2, 1, 1}, {2, -1}), k({18, 1, 1}, 0.0f), v({18, 1, 1}, 1.0f);
  k(3) = 5, k(4) = kNaN, k(16) = 7, k(17) = -9;
  Floats alone({2, 1, 3}, 99.0f), beside({2, 1, 3}, 99.0f), out({2, 1, 1});
  dense_attention({.q = q.tensor(), .k = k.tensor(), .block_max = alone.tensor()}, reference());
  // Row 0 stands at position 16, row 1 at 17; there is no third block.
  EXPECT_EQ(alone.values(), (std::vector<float>{10, 14, -kInf, 0, 9, -kInf}));
  dense_attention({.q = q.tensor(),
                   .k = k.tensor(),
                   .v = v.tensor(),
                   .out = out.tensor(),
                   .block_max = beside.tensor()},
                  reference());
  EXPECT_EQ(alone.values(), beside.values());
}

TEST(DenseByHand, EmptyRequestsMoreQueriesThanKeysAndPadding) {
  Floats q({6, 1, 1}, 0.0f), k({3, 1, 1}, 0.0f), v({3, 1, 1}, {1, 3, 8});
  Floats out({6, 1, 1}, 99.0f), lse({6, 1}, 99.0f);
  // Requests: none at all, 1 key without queries, 3 queries over 2 keys, 1 query without keys; 2
  // rows of padding.
  const Ints starts({5}, {0, 0, 0, 3, 4}), lengths({4}, {0, 1, 2, 0});
  dense_attention({q.tensor(),
                   k.tensor(),
                   v.tensor(),
                   {.cu_seqlens_q = starts.tensor(), .seqlens_k = lengths.tensor()},
                   out.tensor(),
                   lse.tensor()},
                  reference());
  expect_near(out.values(), {0, 3, 5.5, 0, 0, 0});
  expect_near(lse.values(), {-kInf, 0, std::log(2.0f), -kInf, -kInf, -kInf});
}

TEST(DenseByHand, NothingAtAll) {
  Floats q({0, 2, 4}), k({0, 1, 4}), v({0, 1, 4}), out({0, 2, 4});
  const Ints starts({1}, {0}), lengths({0});
  EXPECT_NO_THROW(dense_attention({q.tensor(),
                                   k.tensor(),
                                   v.tensor(),
                                   {.cu_seqlens_q = starts.tensor(), .seqlens_k = lengths.tensor()},
                                   out.tensor()},
                                  reference()));
}

TEST(DenseByHand, OutputIsRoundedToNearestEven) {
  Grid<std::uint16_t> q({1, 1, 1}), k({2, 1, 1}), v({2, 1, 1}), out({1, 1, 1});
  v(0) = reference::encode(1.0, reference::kBF16);
  v(1) = reference::encode(1.0 + 1.0 / 128, reference::kBF16);
  dense_attention({q.tensor(), k.tensor(), v.tensor(), {}, out.tensor()}, reference());
  EXPECT_EQ(out(0), reference::encode(1.0, reference::kBF16));  // the mean lies halfway
}

// ---- block scores and selection ----

TEST(BlockScoresByHand, MaximaOfVisibleKeys) {
  Floats q({2, 2, 1}, {1, -1, 2, -2}), k({20, 1, 1}, 0.0f), scores({2, 2, 3}, 99.0f);
  k(2) = 4, k(5) = kNaN, k(7) = -6, k(17) = -3, k(18) = -1, k(19) = 8;
  k(16) = -3;
  block_scores({q.tensor(), k.tensor(), {}, scores.tensor()}, reference());
  // Row 0 stands at 18 and does not see key 19.
  EXPECT_EQ(scores.values(), (std::vector<float>{4, -1, -kInf, 6, 3, -kInf,  //
                                                 8, 16, -kInf, 12, 6, -kInf}));
}

TEST(BlockScoresByHand, BlockOfNaNScoresMinusInfinity) {
  Floats q({1, 1, 1}, 1.0f), k({17, 1, 1}, 0.0f), scores({1, 1, 2});
  k(16) = kNaN;
  block_scores({q.tensor(), k.tensor(), {}, scores.tensor()}, reference());
  EXPECT_EQ(scores.values(), (std::vector<float>{0, -kInf}));
}

TEST(BlockScoresByHand, SeveralIndexKeyHeads) {
  Floats q({1, 4, 1}, 1.0f), k({1, 2, 1}, {5, 6}), scores({1, 4, 1});
  block_scores({q.tensor(), k.tensor(), {}, scores.tensor()}, reference());
  EXPECT_EQ(scores.values(), (std::vector<float>{5, 5, 6, 6}));
}

struct TopkCase {
  const char* what;
  std::vector<float> scores;  // one row
  std::int32_t seqlen_k;
  std::int64_t k, local, init;
  std::vector<std::int32_t> ids;
  std::vector<float> chosen;
};

const std::vector<TopkCase>& topk_cases() {
  static const std::vector<TopkCase> table = {
      {"best two", {3, 9, 1, 7}, 64, 2, 0, 0, {1, 3}, {9, 7}},
      {"local is forced", {3, 9, 1, 0}, 64, 2, 1, 0, {1, 3}, {9, kInf}},
      {"local and initial", {0, 9, 8, 0}, 64, 3, 1, 1, {0, 1, 3}, {kInf, 9, kInf}},
      {"overlap counts once", {5, 4}, 17, 2, 1, 1, {0, 1}, {kInf, kInf}},
      {"overlap leaves a slot", {5, 4, 6}, 48, 3, 3, 0, {0, 1, 2}, {kInf, kInf, kInf}},
      {"ties go to lower ids", {2, 2, 2, 2}, 64, 2, 0, 0, {0, 1}, {2, 2}},
      {"minus zero equals zero", {-0.0f, 0.0f, -0.0f, -1}, 64, 2, 0, 0, {0, 1}, {-0.0f, 0.0f}},
      {"-inf fills a free slot", {-kInf, 1, -kInf}, 48, 2, 0, 0, {0, 1}, {-kInf, 1}},
      {"NaN counts as -inf", {kNaN, 1, -5}, 48, 2, 0, 0, {1, 2}, {1, -5}},
      {"NaN that fills a slot", {kNaN, 1}, 32, 2, 0, 0, {0, 1}, {-kInf, 1}},
      {"forced beats +inf", {kInf, kInf, kInf, -9}, 64, 2, 1, 0, {0, 3}, {kInf, kInf}},
      {"fewer blocks than slots", {1, 2}, 20, 4, 1, 0, {0, 1, -1, -1}, {1, kInf, -kInf, -kInf}},
      {"no keys", {1, 2}, 0, 2, 1, 1, {-1, -1}, {-kInf, -kInf}},
      {"invisible columns are ignored", {1, 2, 99, 99}, 32, 2, 0, 0, {0, 1}, {1, 2}},
  };
  return table;
}

TEST(SelectTopkByHand, Table) {
  for (const TopkCase& c : topk_cases()) {
    SCOPED_TRACE(c.what);
    const std::int64_t blocks = static_cast<std::int64_t>(c.scores.size());
    Floats scores({1, 1, blocks}), chosen({1, 1, c.k}, 99.0f);
    for (std::int64_t n = 0; n < blocks; ++n)
      scores(0, 0, n) = c.scores[static_cast<std::size_t>(n)];
    Ints ids({1, 1, c.k}, 99);
    const Ints lengths({1}, {c.seqlen_k});
    Settings s = reference();
    s.local_blocks = c.local;
    s.init_blocks = c.init;
    select_topk({scores.tensor(), {.seqlens_k = lengths.tensor()}, ids.tensor(), chosen.tensor()},
                s);
    EXPECT_EQ(ids.values(), c.ids);
    EXPECT_EQ(chosen.values(), c.chosen);
  }
}

TEST(SelectTopkByHand, CausalRowsSeeTheirOwnBlocks) {
  // 33 keys: rows stand at 15, 16, 32; visible blocks 1, 2, 3.
  Floats scores({3, 1, 3}, {9, 9, 9, 1, 2, 9, 5, 7, 6});
  Ints ids({3, 1, 2}, 99);
  const Ints starts({4}, {0, 1, 2, 3}), lengths({3}, {33, 33, 33}), offsets({3}, {15, 16, 32});
  Settings s = reference();
  select_topk({scores.tensor(),
               {.cu_seqlens_q = starts.tensor(),
                .seqlens_k = lengths.tensor(),
                .q_offsets = offsets.tensor()},
               ids.tensor()},
              s);
  EXPECT_EQ(ids.values(), (std::vector<std::int32_t>{0, -1, 0, 1, 1, 2}));
}

TEST(SparseByHand, ListedBlocksOnlyInAnyOrder) {
  Floats q({2, 1, 1}, 0.0f), k({48, 1, 1}, 0.0f), v({48, 1, 1}), out({2, 1, 1}), lse({2, 1});
  for (std::int64_t j = 0; j < 48; ++j) v(j) = static_cast<float>(j / 16);
  const Ints ids({2, 1, 3}, {2, 0, -1, 1, -1, 2});
  sparse_attention(
      {q.tensor(), k.tensor(), v.tensor(), ids.tensor(), {}, out.tensor(), lse.tensor()},
      reference());
  // Row 0 stands at 46: 16 keys of value 0 and 15 of value 2. Row 1 lists block 1 alone.
  expect_near(out.values(), {30.0f / 31, 1});
  expect_near(lse.values(), {std::log(31.0f), std::log(16.0f)});
}

TEST(SparseByHand, InvisibleAndMissingBlocksAddNothing) {
  Floats q({2, 1, 1}, 0.0f), k({32, 1, 1}, 0.0f), v({32, 1, 1}, 1.0f), out({2, 1, 1}, 9.0f);
  Floats lse({2, 1}, 9.0f);
  const Ints ids({2, 1, 2}, {1, -1, -1, 0}), offsets({1}, {0});
  sparse_attention({q.tensor(),
                    k.tensor(),
                    v.tensor(),
                    ids.tensor(),
                    {.q_offsets = offsets.tensor()},
                    out.tensor(),
                    lse.tensor()},
                   reference());
  expect_near(out.values(), {0, 0});
  expect_near(lse.values(), {-kInf, -kInf});
}

TEST(SparseByHand, PoisonOutsideTheListStaysThere) {
  Floats q({1, 1, 1}, 0.0f), k({48, 1, 1}, 0.0f), v({48, 1, 1}, 1.0f), out({1, 1, 1});
  for (std::int64_t j = 16; j < 48; ++j) k(j) = v(j) = kNaN;
  const Ints ids({1, 1, 2}, {0, -1});
  sparse_attention({q.tensor(), k.tensor(), v.tensor(), ids.tensor(), {}, out.tensor()},
                   reference());
  EXPECT_EQ(out(0), 1);
}

// ---- merges ----

TEST(MergeStatesByHand, WeightsAreExponentialsOfLse) {
  const Floats a({1, 1, 2}, {1, 10}), b({1, 1, 2}, {5, 50}), lse_a({1, 1}, {0}),
      lse_b({1, 1}, {kLog3});
  Floats out({1, 1, 2}), lse({1, 1});
  const Tensor outs[] = {a.tensor(), b.tensor()};
  const Tensor lses[] = {lse_a.tensor(), lse_b.tensor()};
  merge_states({outs, lses, out.tensor(), lse.tensor()}, reference());
  expect_near(out.values(), {4, 40}, 1e-5f);
  expect_near(lse.values(), {std::log(4.0f)});
}

TEST(MergeStatesByHand, EmptyAndBrokenParts) {
  struct Row {
    float a, lse_a, b, lse_b, out, lse;
  };
  const Row rows[] = {{kNaN, -kInf, 5, 2, 5, 2},  // no keys: whatever o holds
                      {kInf, -kInf, 5, 2, 5, 2},  //
                      {kNaN, -kInf, kNaN, -kInf, 0, -kInf},
                      {1, kNaN, 5, 2, kNaN, kNaN},  //
                      {1, kInf, 5, 2, kNaN, kNaN},  //
                      {kNaN, 1, 5, 1, kNaN, 1 + std::log(2.0f)},
                      {kNaN, -2000, 5, 1, kNaN, 1}};  // counts, however small
  for (const Row& row : rows) {
    const Floats a({1, 1, 1}, {row.a}), b({1, 1, 1}, {row.b});
    const Floats lse_a({1, 1}, {row.lse_a}), lse_b({1, 1}, {row.lse_b});
    Floats out({1, 1, 1}), lse({1, 1});
    const Tensor outs[] = {a.tensor(), b.tensor()};
    const Tensor lses[] = {lse_a.tensor(), lse_b.tensor()};
    merge_states({outs, lses, out.tensor(), lse.tensor()}, reference());
    expect_near(out.values(), {row.out});
    expect_near(lse.values(), {row.lse});
  }
}

TEST(MergeStatesByHand, InPlace) {
  Floats a({1, 1, 2}, {1, 10}), b({1, 1, 2}, {5, 50}), lse_a({1, 1}, {0}), lse_b({1, 1}, {kLog3});
  const Tensor outs[] = {a.tensor(), b.tensor()};
  const Tensor lses[] = {lse_a.tensor(), lse_b.tensor()};
  merge_states({outs, lses, a.tensor(), lse_a.tensor()}, reference());
  expect_near(a.values(), {4, 40}, 1e-5f);
  expect_near(lse_a.values(), {std::log(4.0f)});
}

TEST(MergeSelectionsByHand, BestOfAllPartsTiesByGlobalId) {
  const Ints ids_a({1, 1, 3}, {4, 7, -1}), ids_b({1, 1, 2}, {0, 2});
  const Floats scores_a({1, 1, 3}, {5, kInf, 99}), scores_b({1, 1, 2}, {1, 5});
  Ints ids({1, 1, 2});
  Floats chosen({1, 1, 2});
  const Tensor id_parts[] = {ids_a.tensor(), ids_b.tensor()};
  const Tensor score_parts[] = {scores_a.tensor(), scores_b.tensor()};
  merge_selections({id_parts, score_parts, ids.tensor(), chosen.tensor()}, reference());
  EXPECT_EQ(ids.values(), (std::vector<std::int32_t>{2, 7}));
  EXPECT_EQ(chosen.values(), (std::vector<float>{5, kInf}));
}

TEST(MergeSelectionsByHand, NothingToChooseFrom) {
  const Ints none({1, 1, 2}, {-1, 3});
  const Floats scores({1, 1, 2}, {9, 9});
  Ints ids({1, 1, 2}, 99);
  const Tensor id_parts[] = {none.tensor()};
  const Tensor score_parts[] = {scores.tensor()};
  merge_selections({id_parts, score_parts, ids.tensor()}, reference());
  EXPECT_EQ(ids.values(), (std::vector<std::int32_t>{-1, -1}));
}

// ---- inversion ----

TEST(InvertByHand, QueriesOfEachBlockAscending) {
  // Two requests with 2 and 1 blocks; one row of padding.
  const Ints ids({4, 1, 2}, {1, 0, 1, -1, 0, -1, 0, 1});
  const Ints starts({3}, {0, 2, 3}), lengths({2}, {32, 5});
  Ints row_ptr({1, 6}, 99), queries({1, 9}, 99), slots({1, 9}, 99);
  invert_selection({ids.tensor(),
                    {.cu_seqlens_q = starts.tensor(), .seqlens_k = lengths.tensor()},
                    row_ptr.tensor(),
                    queries.tensor(),
                    slots.tensor()},
                   reference());
  EXPECT_EQ(row_ptr.values(), (std::vector<std::int32_t>{0, 1, 3, 4, 4, 4}));
  EXPECT_EQ(queries.values(), (std::vector<std::int32_t>{0, 0, 1, 2, -1, -1, -1, -1, -1}));
  EXPECT_EQ(slots.values(), (std::vector<std::int32_t>{1, 0, 0, 0, -1, -1, -1, -1, -1}));
}

// ---- the oracle against itself ----

// Two requests of random numbers: 5 queries over 70 keys, 3 over 33; 2 KV heads, groups of 2.
struct Random {
  static constexpr std::int64_t kRows = 8, kKeys = 103, kHeads = 4, kHeadsKv = 2, kDim = 16;
  Floats q{{kRows, kHeads, kDim}}, k{{kKeys, kHeadsKv, kDim}}, v{{kKeys, kHeadsKv, kDim}};
  Floats index_q{{kRows, kHeadsKv, kDim}}, index_k{{kKeys, 1, kDim}};
  Ints starts{{3}, {0, 5, 8}}, lengths{{2}, {70, 33}};
  Floats out{{kRows, kHeads, kDim}}, lse{{kRows, kHeads}};
  explicit Random(unsigned seed) {
    std::mt19937 random(seed);
    for (Floats* grid : {&q, &k, &v, &index_q, &index_k}) grid->fill_normal(random);
  }
  Batch batch() const { return {.cu_seqlens_q = starts.tensor(), .seqlens_k = lengths.tensor()}; }
  void dense(const Settings& s) {
    dense_attention({q.tensor(), k.tensor(), v.tensor(), batch(), out.tensor(), lse.tensor()}, s);
  }
};

TEST(Metamorphic, SparseWithEveryBlockIsDense) {
  for (const bool causal : {true, false}) {
    Random r(1);
    Settings s = reference();
    s.causal = causal;
    r.dense(s);
    Floats out({Random::kRows, Random::kHeads, Random::kDim}), lse({Random::kRows, Random::kHeads});
    Ints ids({Random::kRows, Random::kHeadsKv, 5}, -1);
    for (std::int64_t row = 0; row < Random::kRows; ++row) {
      for (std::int32_t id = 0; id < (row < 5 ? 5 : 3); ++id)
        ids(row, 0, id) = ids(row, 1, id) = id;
    }
    sparse_attention({r.q.tensor(), r.k.tensor(), r.v.tensor(), ids.tensor(), r.batch(),
                      out.tensor(), lse.tensor()},
                     s);
    expect_same(out.values(), r.out.values());
    expect_same(lse.values(), r.lse.values());
  }
}

TEST(Metamorphic, WithEnoughSlotsMsaIsDense) {
  Random r(2);
  Settings s = reference();
  s.topk = 5;
  r.dense(s);
  Floats out({Random::kRows, Random::kHeads, Random::kDim});
  msa_attention({.q = r.q.tensor(),
                 .k = r.k.tensor(),
                 .v = r.v.tensor(),
                 .index_q = r.index_q.tensor(),
                 .index_k = r.index_k.tensor(),
                 .batch = r.batch(),
                 .out = out.tensor()},
                s);
  expect_same(out.values(), r.out.values());
}

TEST(Metamorphic, MsaIsSelectionThenSparseAttention) {
  Random r(3);
  Settings s = reference();
  s.topk = 2;
  Floats out({Random::kRows, Random::kHeads, Random::kDim}), lse({Random::kRows, Random::kHeads});
  Ints ids({Random::kRows, Random::kHeadsKv, 2}), chosen({Random::kRows, Random::kHeadsKv, 2});
  msa_attention({r.q.tensor(), r.k.tensor(), r.v.tensor(), r.index_q.tensor(), r.index_k.tensor(),
                 r.batch(), r.out.tensor(), r.lse.tensor(), ids.tensor()},
                s);
  select_blocks({r.index_q.tensor(), r.index_k.tensor(), r.batch(), chosen.tensor()}, s);
  EXPECT_EQ(chosen.values(), ids.values());
  sparse_attention({r.q.tensor(), r.k.tensor(), r.v.tensor(), chosen.tensor(), r.batch(),
                    out.tensor(), lse.tensor()},
                   s);
  expect_same(out.values(), r.out.values());
  expect_same(lse.values(), r.lse.values());
}

TEST(Metamorphic, SelectionIsTopkOfBlockScores) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    Random r(seed);
    Settings s = reference();
    s.init_blocks = seed % 2;
    Floats scores({Random::kRows, Random::kHeadsKv, 5});
    Floats fused({Random::kRows, Random::kHeadsKv, 3}),
        staged({Random::kRows, Random::kHeadsKv, 3});
    Ints fused_ids({Random::kRows, Random::kHeadsKv, 3}), ids({Random::kRows, Random::kHeadsKv, 3});
    select_blocks(
        {r.index_q.tensor(), r.index_k.tensor(), r.batch(), fused_ids.tensor(), fused.tensor()}, s);
    block_scores({r.index_q.tensor(), r.index_k.tensor(), r.batch(), scores.tensor()}, s);
    select_topk({scores.tensor(), r.batch(), ids.tensor(), staged.tensor()}, s);
    EXPECT_EQ(ids.values(), fused_ids.values());
    EXPECT_EQ(staged.values(), fused.values());
  }
}

TEST(Metamorphic, PagedIsRagged) {
  Random r(4);
  r.dense(reference());
  // 5 + 3 pages of 16 tokens in any order; what lies behind a request's keys is poison.
  const std::int32_t order[8] = {6, 0, 3, 7, 1, 5, 2, 4};
  const Ints table({2, 5}, {6, 0, 3, 7, 1, 5, 2, 4, -1, 77});
  Floats k({8, 16, 2, 16}, kNaN), v({8, 16, 2, 16}, kNaN), out({8, 4, 16}), lse({8, 4});
  for (std::int64_t j = 0; j < Random::kKeys; ++j) {
    const std::int64_t local = j < 70 ? j : j - 70;
    const std::int64_t page = order[(j < 70 ? 0 : 5) + local / 16];
    for (std::int64_t h = 0; h < 2; ++h) {
      for (std::int64_t d = 0; d < 16; ++d) {
        k(page, local % 16, h, d) = r.k(j, h, d);
        v(page, local % 16, h, d) = r.v(j, h, d);
      }
    }
  }
  Batch batch = r.batch();
  batch.page_table = table.tensor();
  dense_attention({r.q.tensor(), k.tensor(), v.tensor(), batch, out.tensor(), lse.tensor()},
                  reference());
  expect_same(out.values(), r.out.values());
  expect_same(lse.values(), r.lse.values());
}

TEST(Metamorphic, HeadMajorAndPackedViewsAreTheSameTensors) {
  Random r(5);
  r.dense(reference());
  // K and V in one buffer [heads, keys, 2 * dim]; out head-major.
  Floats packed({2, Random::kKeys, 32}), out({4, 8, 16});
  for (std::int64_t j = 0; j < Random::kKeys; ++j) {
    for (std::int64_t h = 0; h < 2; ++h) {
      for (std::int64_t d = 0; d < 16; ++d) {
        packed(h, j, d) = r.k(j, h, d);
        packed(h, j, 16 + d) = r.v(j, h, d);
      }
    }
  }
  float* const base = static_cast<float*>(packed.tensor().data);
  const std::int64_t head = Random::kKeys * 32;
  const Tensor k = make_tensor(base, DType::F32, {Random::kKeys, 2, 16}, {32, head, 1});
  const Tensor v = make_tensor(base + 16, DType::F32, {Random::kKeys, 2, 16}, {32, head, 1});
  const Tensor o = make_tensor(out.tensor().data, DType::F32, {8, 4, 16}, {16, 128, 1});
  dense_attention({r.q.tensor(), k, v, r.batch(), o}, reference());
  for (std::int64_t i = 0; i < 8; ++i) {
    for (std::int64_t h = 0; h < 4; ++h) {
      for (std::int64_t d = 0; d < 16; ++d) EXPECT_EQ(out(h, i, d), r.out(i, h, d));
    }
  }
}

// One request of 8 queries over 96 keys, whole and cut into shards of 32, 48 and 16 keys.
struct Sharded {
  static constexpr std::int64_t kRows = 8, kKeys = 96;
  Floats q{{kRows, 2, 16}}, k{{kKeys, 1, 16}}, v{{kKeys, 1, 16}};
  Ints total = Ints({1}, {96}), position = Ints({1}, {88});
  std::vector<Ints> offsets{Ints({1}, {0}), Ints({1}, {32}), Ints({1}, {80})};
  std::vector<std::int64_t> starts{0, 32, 80, 96};
  explicit Sharded(unsigned seed) {
    std::mt19937 random(seed);
    for (Floats* grid : {&q, &k, &v}) grid->fill_normal(random);
  }
  Tensor part(Floats& whole, std::size_t n) const {
    return make_tensor(&whole(starts[n]), DType::F32, {starts[n + 1] - starts[n], 1, 16});
  }
  Batch batch(std::size_t n) const {
    return {.q_offsets = position.tensor(),
            .key_offsets = offsets[n].tensor(),
            .total_seqlens_k = total.tensor()};
  }
};

TEST(Metamorphic, MergedShardsAreTheWhole) {
  Sharded s(6);
  Floats whole({8, 2, 16}), whole_lse({8, 2}), merged({8, 2, 16}), merged_lse({8, 2});
  dense_attention(
      {s.q.tensor(), s.k.tensor(), s.v.tensor(), {}, whole.tensor(), whole_lse.tensor()},
      reference());
  std::vector<Floats> outs(3, Floats({8, 2, 16})), lses(3, Floats({8, 2}));
  std::vector<Tensor> out_parts, lse_parts;
  for (std::size_t n = 0; n < 3; ++n) {
    out_parts.push_back(outs[n].tensor());
    lse_parts.push_back(lses[n].tensor());
    dense_attention(
        {s.q.tensor(), s.part(s.k, n), s.part(s.v, n), s.batch(n), out_parts[n], lse_parts[n]},
        reference());
  }
  merge_states({out_parts, lse_parts, merged.tensor(), merged_lse.tensor()}, reference());
  expect_near(merged.values(), whole.values(), 1e-6f);
  expect_near(merged_lse.values(), whole_lse.values(), 1e-6f);
}

TEST(Metamorphic, MergedSelectionsOfShardsAreTheWhole) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    Sharded s(seed);
    Settings settings = reference();
    settings.local_blocks = 1 + seed % 2;
    settings.init_blocks = seed % 3 == 0 ? 1 : 0;
    Ints whole({8, 2, 3}), merged({8, 2, 3});
    Floats whole_scores({8, 2, 3}), merged_scores({8, 2, 3});
    select_blocks({s.q.tensor(), s.k.tensor(), {}, whole.tensor(), whole_scores.tensor()},
                  settings);
    std::vector<Ints> ids(3, Ints({8, 2, 3}));
    std::vector<Floats> scores(3, Floats({8, 2, 3}));
    std::vector<Tensor> id_parts, score_parts;
    for (std::size_t n = 0; n < 3; ++n) {
      id_parts.push_back(ids[n].tensor());
      score_parts.push_back(scores[n].tensor());
      select_blocks({s.q.tensor(), s.part(s.k, n), s.batch(n), id_parts[n], score_parts[n]},
                    settings);
    }
    merge_selections({id_parts, score_parts, merged.tensor(), merged_scores.tensor()}, settings);
    EXPECT_EQ(merged.values(), whole.values()) << seed;
    EXPECT_EQ(merged_scores.values(), whole_scores.values()) << seed;
  }
}

TEST(Metamorphic, ShardsOfOneListAreTheWholeList) {
  Sharded s(7);
  Ints ids({8, 1, 3}, -1);
  for (std::int64_t i = 0; i < 8; ++i) ids(i, 0, 0) = 4, ids(i, 0, 1) = 1;
  Floats whole({8, 2, 16}), merged({8, 2, 16});
  sparse_attention({s.q.tensor(), s.k.tensor(), s.v.tensor(), ids.tensor(), {}, whole.tensor()},
                   reference());
  std::vector<Floats> outs(3, Floats({8, 2, 16})), lses(3, Floats({8, 2}));
  std::vector<Tensor> out_parts, lse_parts;
  for (std::size_t n = 0; n < 3; ++n) {
    out_parts.push_back(outs[n].tensor());
    lse_parts.push_back(lses[n].tensor());
    sparse_attention({s.q.tensor(), s.part(s.k, n), s.part(s.v, n), ids.tensor(), s.batch(n),
                      out_parts[n], lse_parts[n]},
                     reference());
  }
  // The last shard holds none of the listed blocks.
  expect_near(lses[2].values(), std::vector<float>(16, -kInf));
  merge_states({out_parts, lse_parts, merged.tensor()}, reference());
  expect_near(merged.values(), whole.values(), 1e-6f);
}

TEST(Metamorphic, InverseHoldsTheSelection) {
  Random r(8);
  Settings s = reference();
  Ints ids({8, 2, 3}), row_ptr({2, 9}), queries({2, 24}), slots({2, 24}), rebuilt({8, 2, 3}, -1);
  select_blocks({r.index_q.tensor(), r.index_k.tensor(), r.batch(), ids.tensor()}, s);
  invert_selection({ids.tensor(), r.batch(), row_ptr.tensor(), queries.tensor(), slots.tensor()},
                   s);
  for (std::int64_t h = 0; h < 2; ++h) {
    for (std::int64_t row = 0; row < 8; ++row) {
      for (std::int32_t n = row_ptr(h, row); n < row_ptr(h, row + 1); ++n) {
        const std::int32_t block = static_cast<std::int32_t>(row < 5 ? row : row - 5);
        rebuilt(queries(h, n), h, slots(h, n)) = block;
        if (n > row_ptr(h, row)) {
          EXPECT_GT(queries(h, n), queries(h, n - 1));
        }
      }
    }
  }
  EXPECT_EQ(rebuilt.values(), ids.values());
}

}  // namespace
}  // namespace msa::test
