// SPDX-License-Identifier: MIT
// What happens to scores and lists after scoring: top-k of given scores, merging of shards,
// inversion. Every instruction set against the reference, exactly.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>

#include "tests/cpu/common.h"
#include "tests/cpu/select_case.h"

namespace msa::test {
namespace {

/// Scores drawn from few values, so that ties and special values stand everywhere.
std::vector<float> draw(std::size_t count, const std::vector<float>& values, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> scores(count);
  for (float& score : scores) score = values[random() % values.size()];
  return scores;
}

class GivenScores : public testing::TestWithParam<std::vector<float>> {};

TEST_P(GivenScores, TopkMatchesReference) {
  const std::vector<SelectShape> shapes = {
      {.topk = 5, .q_lens = {70, 1, 3}, .k_lens = {300, 900, 40}, .padding = 2},
      {.topk = 1, .local_blocks = 0, .q_lens = {9}, .k_lens = {2000}},
      {.heads = 2,
       .topk = 70,
       .local_blocks = 3,
       .init_blocks = 2,
       .q_lens = {20},
       .k_lens = {3000}},
      {.topk = 7, .causal = false, .q_lens = {5, 5}, .k_lens = {515, 100}},
      {.topk = 4,
       .local_blocks = 2,
       .q_lens = {30},
       .k_lens = {320},
       .q_offsets = {300},
       .key_offsets = {160}},
  };
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const SelectCase c(shapes[i], Values::Integers, Poison::None, 1);
    const std::size_t count = static_cast<std::size_t>(c.rows() * shapes[i].heads * c.blocks());
    const std::vector<float> scores = draw(count, GetParam(), static_cast<std::uint32_t>(i));
    const Selected want = c.topk(scores, kReference);
    for (const std::string& isa : available_isas()) {
      SCOPED_TRACE(isa + ", shape " + std::to_string(i));
      EXPECT_EQ(c.topk(scores, on(isa)), want);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Values, GivenScores,
    testing::Values(std::vector<float>{1.0f}, std::vector<float>{0.0f, -0.0f},
                    std::vector<float>{-kInf}, std::vector<float>{kNaN, -kInf, 1.0f},
                    std::vector<float>{kInf, -kInf, kNaN, 3.0f, -3.0f, 1e-45f, 0.0f, -0.0f},
                    std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}));

TEST(SelectTopk, TakesAnyStrides) {
  const SelectCase c({.topk = 3, .q_lens = {6}, .k_lens = {400}}, Values::Integers, Poison::None,
                     1);
  const std::int64_t rows = c.rows(), blocks = c.blocks();
  const std::vector<float> dense =
      draw(static_cast<std::size_t>(rows * 4 * blocks), {1, 2, 3, 4, 5, 6, 7, 8}, 3);
  const Selected want = c.topk(dense, kReference);
  // Blocks outermost, heads innermost, two floats apart; ids and scores as [k][heads][rows].
  std::vector<float> turned(dense.size() * 2, kNaN);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t h = 0; h < 4; ++h) {
      for (std::int64_t b = 0; b < blocks; ++b) {
        turned[static_cast<std::size_t>(((b * rows + r) * 4 + h) * 2)] =
            dense[static_cast<std::size_t>((r * 4 + h) * blocks + b)];
      }
    }
  }
  std::vector<std::int32_t> ids(want.ids.size(), -7);
  std::vector<float> scores(want.scores.size(), -7.0f);
  SelectTopkArgs args{.batch = c.batch(false)};
  args.scores = make_tensor(turned.data(), DType::F32, {rows, 4, blocks}, {8, 2, rows * 8});
  args.block_ids = make_tensor(ids.data(), DType::I32, {rows, 4, 3}, {1, rows, rows * 4});
  args.chosen_scores = make_tensor(scores.data(), DType::F32, {rows, 4, 3}, {1, rows, rows * 4});
  for (const std::string& isa : available_isas()) {
    select_topk(args, c.settings(on(isa)));
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t h = 0; h < 4; ++h) {
        for (std::int64_t s = 0; s < 3; ++s) {
          const std::size_t to = static_cast<std::size_t>((s * 4 + h) * rows + r),
                            from = static_cast<std::size_t>((r * 4 + h) * 3 + s);
          EXPECT_EQ(ids[to], want.ids[from]) << isa;
          EXPECT_EQ(scores[to], want.scores[from]) << isa;
        }
      }
    }
  }
}

TEST(SelectBlocks, ShardsMergeToTheWhole) {
  const SelectShape whole{
      .topk = 6, .local_blocks = 2, .init_blocks = 1, .q_lens = {50}, .k_lens = {480}};
  const SelectCase all(whole, Values::Normal, Poison::None, 5);
  for (const std::string& isa : available_isas()) {
    const std::vector<float> scores = all.block_scores(on(isa));
    const Selected want = all.select(on(isa));
    std::vector<Selected> parts;
    std::vector<Tensor> ids, chosen;
    std::int32_t begin = 0;
    for (const std::int32_t size : {160, 16, 304}) {
      SelectShape part = whole;
      part.k_lens = {size};
      part.key_offsets = {begin};
      part.totals = {480};
      part.q_offsets = {430};
      const SelectCase shard(part, Values::Integers, Poison::None, 1);
      std::vector<float> columns;
      for (std::int64_t row = 0; row < all.rows() * 4; ++row) {
        const auto first = scores.begin() + row * all.blocks() + begin / 16;
        columns.insert(columns.end(), first, first + size / 16);
      }
      parts.push_back(shard.topk(columns, on(isa)));
      begin += size;
    }
    for (const Selected& part : parts) {
      ids.push_back(make_tensor(part.ids.data(), DType::I32, {50, 4, 6}));
      chosen.push_back(make_tensor(part.scores.data(), DType::F32, {50, 4, 6}));
    }
    Selected merged{std::vector<std::int32_t>(want.ids.size(), -7),
                    std::vector<float>(want.scores.size(), -7)};
    MergeSelectionsArgs args{.block_ids_parts = ids, .chosen_scores_parts = chosen};
    args.block_ids = make_tensor(merged.ids.data(), DType::I32, {50, 4, 6});
    args.chosen_scores = make_tensor(merged.scores.data(), DType::F32, {50, 4, 6});
    merge_selections(args, {.topk = 6, .options = on(isa)});
    EXPECT_EQ(merged, want) << isa;
  }
}

TEST(MergeSelections, MatchesReference) {
  std::mt19937 random(7);
  const std::int64_t rows = 90, heads = 3, k = 9;
  const std::vector<std::int64_t> widths = {1, 9, 20, 256};
  const std::vector<float> values = {kInf, -kInf, kNaN, 1.0f, 2.0f, 3.0f, 0.0f, -0.0f};
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<std::vector<float>> scores;
  for (const std::int64_t width : widths) {
    ids.emplace_back(static_cast<std::size_t>(rows * heads * width), -1);
    scores.push_back(draw(ids.back().size(), values, static_cast<std::uint32_t>(random())));
  }
  for (std::int64_t list = 0; list < rows * heads; ++list) {  // each id in one part only
    std::vector<std::int32_t> pool(400);
    std::iota(pool.begin(), pool.end(), 0);
    std::shuffle(pool.begin(), pool.end(), random);
    for (std::size_t part = 0; part < widths.size(); ++part) {
      const std::int64_t valid = static_cast<std::int64_t>(random()) % (widths[part] + 1);
      for (std::int64_t slot = 0; slot < valid; ++slot, pool.pop_back()) {
        ids[part][static_cast<std::size_t>(list * widths[part] + slot)] = pool.back();
      }
    }
  }
  std::vector<Tensor> id_parts, score_parts;
  for (std::size_t part = 0; part < widths.size(); ++part) {
    id_parts.push_back(make_tensor(ids[part].data(), DType::I32, {rows, heads, widths[part]}));
    score_parts.push_back(
        make_tensor(scores[part].data(), DType::F32, {rows, heads, widths[part]}));
  }
  const auto merged = [&](const Options& options) {
    const std::size_t count = static_cast<std::size_t>(rows * heads * k);
    Selected result{std::vector<std::int32_t>(count, -7), std::vector<float>(count, -7)};
    MergeSelectionsArgs args{.block_ids_parts = id_parts, .chosen_scores_parts = score_parts};
    args.block_ids = make_tensor(result.ids.data(), DType::I32, {rows, heads, k});
    args.chosen_scores = make_tensor(result.scores.data(), DType::F32, {rows, heads, k});
    merge_selections(args, {.topk = k, .options = options});
    return result;
  };
  EXPECT_EQ(merged({.backend = "cpu"}), merged(kReference));
}

struct Inverted {
  std::vector<std::int32_t> row_ptr, q_indices, q_slots;
  friend bool operator==(const Inverted&, const Inverted&) = default;
};

Inverted invert(const SelectCase& c, const std::vector<std::int32_t>& ids, const Options& options) {
  const SelectShape& shape = c.shape();
  std::int64_t rows = 3;  // more than the batch has blocks
  for (const std::int32_t n : shape.k_lens) rows += (n + shape.block_size - 1) / shape.block_size;
  const std::int64_t entries = c.rows() * shape.topk + 5;
  Inverted result{std::vector<std::int32_t>(static_cast<std::size_t>(shape.heads * (rows + 1)), -7),
                  std::vector<std::int32_t>(static_cast<std::size_t>(shape.heads * entries), -7),
                  std::vector<std::int32_t>(static_cast<std::size_t>(shape.heads * entries), -7)};
  InvertSelectionArgs args{.batch = c.batch(false)};
  args.block_ids = make_tensor(ids.data(), DType::I32, {c.rows(), shape.heads, shape.topk});
  args.row_ptr = make_tensor(result.row_ptr.data(), DType::I32, {shape.heads, rows + 1});
  args.q_indices = make_tensor(result.q_indices.data(), DType::I32, {shape.heads, entries});
  args.q_slots = make_tensor(result.q_slots.data(), DType::I32, {shape.heads, entries});
  invert_selection(args, c.settings(options));
  return result;
}

TEST(InvertSelection, MatchesReference) {
  const std::vector<SelectShape> shapes = {
      {.topk = 5, .q_lens = {70, 0, 1, 3}, .k_lens = {300, 33, 900, 40}, .padding = 2},
      {.topk = 4,
       .local_blocks = 2,
       .q_lens = {30, 2},
       .k_lens = {320, 64},
       .q_offsets = {300, 10},
       .key_offsets = {160, 0}},
      {.topk = 4, .q_lens = {}, .k_lens = {}},
  };
  for (const SelectShape& shape : shapes) {
    const SelectCase c(shape, Values::Integers, Poison::None, 3);
    std::vector<std::int32_t> ids = c.select(kReference).ids;
    // Lists come in any order: turn every other one around in front of its tail.
    for (std::size_t at = 0; at + static_cast<std::size_t>(shape.topk) <= ids.size();
         at += 2 * static_cast<std::size_t>(shape.topk)) {
      const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(at);
      std::reverse(begin, std::find(begin, begin + shape.topk, -1));
    }
    EXPECT_EQ(invert(c, ids, {.backend = "cpu"}), invert(c, ids, kReference));
  }
}

}  // namespace
}  // namespace msa::test
