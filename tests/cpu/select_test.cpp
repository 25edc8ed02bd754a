// SPDX-License-Identifier: MIT
// Scoring and selection of every instruction set against the reference: exactly, where scores are
// integers; within the rounding of the scores, where not; and against themselves, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ostream>

#include "core/geometry.h"
#include "testkit/number.h"
#include "tests/cpu/common.h"
#include "tests/cpu/select_case.h"

namespace msa::test {
namespace {

struct Named {
  std::string name;
  SelectShape shape;
};

const std::vector<Named>& shapes() {
  static const std::vector<Named> list = {
      {"prefill", {.q_lens = {200}, .k_lens = {200}}},
      {"prefill_over_prefix", {.dim = 64, .q_lens = {70}, .k_lens = {331}}},
      {"more_queries_than_keys", {.q_lens = {90}, .k_lens = {50}}},
      {"decode", {.dim = 128, .q_lens = {1}, .k_lens = {777}}},
      {"decode_two_tokens", {.dim = 48, .q_lens = {2}, .k_lens = {401}}},
      {"decode_eight_tokens", {.dim = 80, .q_lens = {8}, .k_lens = {513}}},
      {"one_head", {.heads = 1, .dim = 16, .q_lens = {3, 1}, .k_lens = {100, 310}}},
      {"three_heads", {.heads = 3, .dim = 112, .q_lens = {41, 2}, .k_lens = {170, 90}}},
      {"key_heads", {.heads = 6, .heads_k = 3, .q_lens = {35, 1}, .k_lens = {150, 222}}},
      {"own_key_heads", {.heads = 4, .heads_k = 4, .q_lens = {20, 8}, .k_lens = {150, 222}}},
      {"mixed", {.q_lens = {1, 0, 33, 2, 0, 5}, .k_lens = {90, 40, 300, 0, 0, 17}}},
      {"empty_batch", {.q_lens = {}, .k_lens = {}}},
      {"padding", {.q_lens = {1, 1, 0}, .k_lens = {65, 200, 0}, .padding = 3}},
      {"paged", {.q_lens = {3, 50, 1}, .k_lens = {130, 190, 257}, .page_size = 16}},
      {"paged_48",
       {.block_size = 32, .q_lens = {3, 50, 1}, .k_lens = {130, 190, 257}, .page_size = 48}},
      {"strided", {.q_lens = {9, 40, 1}, .k_lens = {99, 190, 257}, .stretch = 3}},
      {"strided_pages",
       {.q_lens = {9, 40, 1}, .k_lens = {99, 190, 257}, .page_size = 32, .stretch = 5}},
      {"not_causal", {.causal = false, .q_lens = {9, 40, 1}, .k_lens = {99, 190, 257}}},
      {"no_local", {.local_blocks = 0, .q_lens = {9, 40, 1}, .k_lens = {99, 190, 257}}},
      {"init_and_local",
       {.topk = 6, .local_blocks = 2, .init_blocks = 2, .q_lens = {190, 2}, .k_lens = {190, 257}}},
      {"all_forced",
       {.topk = 3, .local_blocks = 2, .init_blocks = 1, .q_lens = {190, 2}, .k_lens = {190, 257}}},
      {"wide_lists", {.topk = 40, .q_lens = {100, 1, 5}, .k_lens = {600, 900, 200}}},
      {"one_slot", {.topk = 1, .local_blocks = 0, .q_lens = {100, 1}, .k_lens = {300, 700}}},
      {"big_blocks",
       {.dim = 256, .block_size = 256, .topk = 2, .q_lens = {9, 1}, .k_lens = {800, 1100}}},
      {"odd_blocks", {.block_size = 48, .q_lens = {40, 1}, .k_lens = {700, 999}}},
      {"offsets", {.q_lens = {10, 20, 4}, .k_lens = {200, 300, 64}, .q_offsets = {-5, 100, 1000}}},
      {"shard",
       {.topk = 5,
        .local_blocks = 2,
        .init_blocks = 1,
        .q_lens = {30, 1},
        .k_lens = {160, 320},
        .q_offsets = {170, 479},
        .key_offsets = {64, 160},
        .totals = {400, 480}}},
      {"long_decode", {.dim = 16, .topk = 16, .q_lens = {1}, .k_lens = {30000}}},
      {"chunk_over_long_prefix", {.dim = 16, .topk = 16, .q_lens = {12}, .k_lens = {9000}}},
      {"paged_long_decode",
       {.heads = 2,
        .dim = 16,
        .topk = 9,
        .q_lens = {2, 1},
        .k_lens = {9000, 20000},
        .page_size = 64}},
      {"open_shard", {.q_lens = {30}, .k_lens = {160}, .q_offsets = {500}, .key_offsets = {64}}},
  };
  return list;
}

struct Run {
  Named named;
  DType dtype;
};

void PrintTo(const Run& run, std::ostream* out) { *out << run.named.name; }

std::vector<Run> all_runs() {
  std::vector<Run> runs;
  for (const Named& named : shapes()) {
    for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) runs.push_back({named, dtype});
  }
  return runs;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

class Select : public testing::TestWithParam<Run> {
 protected:
  static void SetUpTestSuite() { isas = available_isas(); }
  SelectShape shape() const {
    SelectShape s = GetParam().named.shape;
    s.dtype = GetParam().dtype;
    return s;
  }
  static inline std::vector<std::string> isas{};
};

TEST_P(Select, IntegersMatchReference) {
  for (const Poison poison : {Poison::None, Poison::VisibleNaN}) {
    const SelectCase c(shape(), Values::Integers, poison, 11);
    const std::vector<float> scores = c.block_scores(kReference);
    const Selected want = c.select(kReference);
    for (const std::string& isa : isas) {
      SCOPED_TRACE(isa);
      EXPECT_EQ(c.block_scores(on(isa)), scores);
      EXPECT_EQ(c.select(on(isa)), want);
      EXPECT_EQ(c.select(on(isa), false).ids, want.ids);
    }
  }
}

TEST_P(Select, EqualsTopkOfScoresBitForBit) {
  const SelectCase c(shape(), Values::Normal, Poison::VisibleNaN, 12);
  for (const std::string& isa : isas) {
    SCOPED_TRACE(isa);
    const Selected selected = c.select(on(isa));
    const Selected ranked = c.topk(c.block_scores(on(isa)), on(isa));
    EXPECT_EQ(selected.ids, ranked.ids);
    EXPECT_TRUE(same_bits(selected.scores, ranked.scores));
  }
}

TEST_P(Select, BitsDoNotDependOnThreads) {
  const SelectCase c(shape(), Values::Normal, Poison::None, 13);
  for (const std::string& isa : isas) {
    SCOPED_TRACE(isa);
    const Selected one = c.select(on(isa, 1));
    const std::vector<float> scores = c.block_scores(on(isa, 1));
    const Selected many = c.select(on(isa, 3));
    EXPECT_EQ(many.ids, one.ids);
    EXPECT_TRUE(same_bits(many.scores, one.scores));
    EXPECT_TRUE(same_bits(c.block_scores(on(isa, 3)), scores));
  }
}

// Sums of n products of normal numbers, rounded in any order: far below this for every dim here.
float rounding(float score, std::int64_t dim) {
  return 1e-6f * (static_cast<float>(dim) + std::abs(score));
}

TEST_P(Select, NormalScoresAreWithinRounding) {
  const SelectCase c(shape(), Values::Normal, Poison::None, 14);
  const std::vector<float> want = c.block_scores(kReference);
  for (const std::string& isa : isas) {
    SCOPED_TRACE(isa);
    const std::vector<float> have = c.block_scores(on(isa));
    for (std::size_t i = 0; i < want.size(); ++i) {
      if (std::isinf(want[i])) {
        ASSERT_EQ(have[i], want[i]);
      } else {
        ASSERT_NEAR(have[i], want[i], rounding(want[i], c.shape().dim));
      }
    }
  }
}

TEST(SelectRows, PiecesGiveTheWhole) {
  const SelectCase c({.dim = 16,
                      .topk = 6,
                      .q_lens = {3, 200, 0, 100, 1},
                      .k_lens = {90, 700, 5, 1000, 300},
                      .padding = 5},
                     Values::Normal, Poison::None, 15);
  for (const std::string& isa : available_isas()) {
    const Selected want = c.select(on(isa), false);
    EXPECT_EQ(c.select_rows(isa, {0, c.rows()}), want) << isa;
    EXPECT_EQ(c.select_rows(isa, {0, 3, 67, 195, 203, 267, 304, 306, c.rows()}), want) << isa;
  }
}

// ---- few rows over groups of codes, on levels that have tiles ----

/// Two tokens of two heads over keys in nvfp4, of one head.
struct CodedKeys {
  static constexpr std::int64_t kTokens = 2, kHeads = 2, kKeys = 77, kBlock = 48;

  explicit CodedKeys(std::int64_t d) : dim(d) {
    std::uint32_t state = 1;
    const auto next = [&state] { return (state = state * 1664525u + 1013904223u) >> 8; };
    for (std::int64_t i = 0; i < kKeys * dim / 2; ++i)
      codes.push_back(static_cast<std::uint8_t>(next()));
    for (std::int64_t i = 0; i < kKeys * dim / 16; ++i)
      scales.push_back(static_cast<std::uint8_t>(0x28 + next() % 32));  // 2^-2 to 2^2
    for (std::int64_t i = 0; i < kTokens * kHeads * dim; ++i)  // of both signs, 2^-4 to 2^4
      q.push_back(static_cast<std::uint16_t>((next() & 0x807f) | (123 + next() % 8) << 7));
  }

  float query(std::int64_t row, std::int64_t d) const {
    return testkit::bf16_to_float(q[static_cast<std::size_t>(row * dim + d)]);
  }
  float key(std::int64_t j, std::int64_t d) const {
    const std::uint8_t pair = codes[static_cast<std::size_t>((j * dim + d) / 2)];
    return testkit::e2m1_to_float(d % 2 == 0 ? pair & 15 : pair >> 4) *
           testkit::e4m3_to_float(scales[static_cast<std::size_t>((j * dim + d) / 16)]);
  }
  std::vector<float> scores_on(const std::string& isa) {
    std::vector<std::int32_t> cu_q{0, kTokens}, lengths{kKeys};
    const std::int64_t blocks = core::ceil_div(kKeys, kBlock);
    std::vector<float> scores(static_cast<std::size_t>(kTokens * kHeads * blocks));
    block_scores({.index_q = make_tensor(q.data(), DType::BF16, {kTokens, kHeads, dim}),
                  .index_k = make_tensor(codes.data(), DType::E2M1, {kKeys, 1, dim}),
                  .batch = {.cu_seqlens_q = make_tensor(cu_q.data(), DType::I32, {2}),
                            .seqlens_k = make_tensor(lengths.data(), DType::I32, {1})},
                  .scores = make_tensor(scores.data(), DType::F32, {kTokens, kHeads, blocks}),
                  .index_k_scale = make_tensor(scales.data(), DType::E4M3, {kKeys, 1, dim / 16})},
                 {.block_size = kBlock, .options = on(isa)});
    return scores;
  }

  std::int64_t dim;
  std::vector<std::uint8_t> codes, scales;
  std::vector<std::uint16_t> q;
};

/// A score as the unit of tiles sums it: 32 products at a time, even and odd ones apart, 16
/// elements that share a scale in the order 0, 4, 8, 12, 1, 5, ...
float score_of_tiles(const CodedKeys& keys, std::int64_t row, std::int64_t j) {
  float score = 0;
  for (std::int64_t step = 0; step < keys.dim; step += 32) {
    float sums[2] = {};
    for (std::int64_t n = 0; n < std::min<std::int64_t>(32, keys.dim - step); ++n) {
      const std::int64_t d = step + n / 16 * 16 + n % 4 * 4 + n % 16 / 4;
      sums[n % 2] = std::fma(keys.query(row, d), keys.key(j, d), sums[n % 2]);
    }
    score += sums[0] + sums[1];
  }
  return score;
}

// Which they would not be, did a level of vectors serve them.
TEST(SelectCodes, FewRowsAreSumsOfTiles) {
  for (const std::int64_t dim : {16, 48, 128, 144, 256}) {
    CodedKeys keys(dim);
    std::vector<float> expected;
    for (std::int64_t row = 0; row < CodedKeys::kTokens * CodedKeys::kHeads; ++row) {
      const std::int64_t seen = CodedKeys::kKeys - CodedKeys::kTokens + 1 + row / CodedKeys::kHeads;
      for (std::int64_t begin = 0; begin < CodedKeys::kKeys; begin += CodedKeys::kBlock) {
        float best = -kInf;
        for (std::int64_t j = begin; j < std::min(begin + CodedKeys::kBlock, seen); ++j)
          best = std::max(best, score_of_tiles(keys, row, j));
        expected.push_back(best);
      }
    }
    for (const std::string& isa : available_isas()) {
      if (isa.starts_with("amx")) {
        EXPECT_EQ(keys.scores_on(isa), expected) << isa << " " << dim;
      }
    }
  }
}

/// Few rows of 128 dims over keys of one head in groups of codes, many blocks of them; the last
/// block ends inside a run of 16.
struct ManyCodedKeys {
  static constexpr std::int64_t kKeys = 4500, kDim = 128, kBlock = 64, kTopk = 5;

  /// `spread`: scales from 0x38 - spread to 0x38 + spread; one in 64 of any code.
  ManyCodedKeys(std::int64_t rows, std::int64_t each, std::uint32_t seed, std::uint32_t spread)
      : tokens(rows), heads(each) {
    std::uint32_t state = seed;
    const auto next = [&state] { return (state = state * 1664525u + 1013904223u) >> 8; };
    for (std::int64_t i = 0; i < kKeys * kDim / 2; ++i)
      codes.push_back(static_cast<std::uint8_t>(next()));
    for (std::int64_t i = 0; i < kKeys * kDim / 16; ++i) {
      const std::uint32_t scale =
          next() % 64 == 0 ? next() % 127 : 0x38 - spread + next() % (2 * spread + 1);
      scales.push_back(static_cast<std::uint8_t>(scale | (next() % 512 == 0 ? 0x80u : 0u)));
    }
    for (std::int64_t i = 0; i < tokens * heads * kDim; ++i)
      q.push_back(static_cast<std::uint16_t>((next() & 0x807f) | (123 + next() % 4) << 7));
  }
  Batch batch() {
    return {.cu_seqlens_q = make_tensor(cu_q.data(), DType::I32, {2}),
            .seqlens_k = make_tensor(lengths.data(), DType::I32, {1})};
  }
  Tensor queries() { return make_tensor(q.data(), DType::BF16, {tokens, heads, kDim}); }
  Tensor keys() { return make_tensor(codes.data(), DType::E2M1, {kKeys, 1, kDim}); }
  Tensor scales_of_keys() { return make_tensor(scales.data(), DType::E4M3, {kKeys, 1, kDim / 16}); }

  std::int64_t tokens, heads;
  std::vector<std::uint8_t> codes, scales;
  std::vector<std::uint16_t> q;
  std::vector<std::int32_t> cu_q{0, static_cast<std::int32_t>(tokens)}, lengths{kKeys};
};

// Bounds that leave keys out leave none of a chosen block out: block_scores scores every key.
TEST(SelectCodes, FewRowsChooseWhatAllScoresChoose) {
  const std::int64_t blocks = core::ceil_div(ManyCodedKeys::kKeys, ManyCodedKeys::kBlock);
  for (const auto& shape : {std::pair{1, 1}, {1, 2}, {1, 3}, {1, 4}, {2, 3}, {2, 4}}) {
    const std::int64_t tokens = shape.first, heads = shape.second;  // named: lambdas read them
    for (const std::uint32_t spread : {1u, 8u, 40u}) {
      ManyCodedKeys keys(tokens, heads, 1, spread);
      for (const std::string& isa : available_isas()) {
        for (const int threads : {1, 3}) {
          const auto rows = static_cast<std::size_t>(tokens * heads);
          std::vector<float> scores(rows * static_cast<std::size_t>(blocks));
          std::vector<std::int32_t> ranked(rows * ManyCodedKeys::kTopk), selected = ranked;
          const Tensor all = make_tensor(scores.data(), DType::F32, {tokens, heads, blocks});
          const auto ids = [&](std::vector<std::int32_t>& list) {
            return make_tensor(list.data(), DType::I32, {tokens, heads, ManyCodedKeys::kTopk});
          };
          block_scores({.index_q = keys.queries(),
                        .index_k = keys.keys(),
                        .batch = keys.batch(),
                        .scores = all,
                        .index_k_scale = keys.scales_of_keys()},
                       {.block_size = ManyCodedKeys::kBlock, .options = on(isa, threads)});
          select_topk({.scores = all, .batch = keys.batch(), .block_ids = ids(ranked)},
                      {.block_size = ManyCodedKeys::kBlock,
                       .topk = ManyCodedKeys::kTopk,
                       .options = on(isa, threads)});
          select_blocks({.index_q = keys.queries(),
                         .index_k = keys.keys(),
                         .batch = keys.batch(),
                         .block_ids = ids(selected),
                         .index_k_scale = keys.scales_of_keys()},
                        {.block_size = ManyCodedKeys::kBlock,
                         .topk = ManyCodedKeys::kTopk,
                         .options = on(isa, threads)});
          EXPECT_EQ(selected, ranked) << isa << " " << tokens << " " << heads << " " << spread;
        }
      }
    }
  }
}

std::string run_name(const testing::TestParamInfo<Run>& info) {
  return info.param.named.name + "_" + to_string(info.param.dtype);
}
INSTANTIATE_TEST_SUITE_P(All, Select, testing::ValuesIn(all_runs()), run_name);

}  // namespace
}  // namespace msa::test
