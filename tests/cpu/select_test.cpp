// SPDX-License-Identifier: MIT
// Scoring and selection of every instruction set against the reference: exactly, where scores are
// integers; within the rounding of the scores, where not; and against themselves, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ostream>

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

std::string run_name(const testing::TestParamInfo<Run>& info) {
  return info.param.named.name + "_" + to_string(info.param.dtype);
}
INSTANTIATE_TEST_SUITE_P(All, Select, testing::ValuesIn(all_runs()), run_name);

}  // namespace
}  // namespace msa::test
