// SPDX-License-Identifier: MIT
// Visibility, blocks and forced blocks against cases made by hand.
#include "core/geometry.h"

#include <gtest/gtest.h>

namespace msa::core {
namespace {

TEST(Division, RoundsTowardsInfinities) {
  EXPECT_EQ(ceil_div(0, 16), 0);
  EXPECT_EQ(ceil_div(1, 16), 1);
  EXPECT_EQ(ceil_div(16, 16), 1);
  EXPECT_EQ(ceil_div(17, 16), 2);
  EXPECT_EQ(floor_div(-1, 16), -1);
  EXPECT_EQ(floor_div(-16, 16), -1);
  EXPECT_EQ(floor_div(-17, 16), -2);
  EXPECT_EQ(floor_div(15, 16), 0);
}

Request whole(std::int64_t seqlen_q, std::int64_t seqlen_k, bool causal) {
  return {.seqlen_q = seqlen_q,
          .seqlen_k = seqlen_k,
          .offset = seqlen_k - seqlen_q,
          .total_k = seqlen_k,
          .block_size = 16,
          .causal = causal};
}

TEST(WholeRequest, CausalAlignsBottomRight) {
  const Request r = whole(4, 20, true);  // rows stand at 16, 17, 18, 19
  EXPECT_EQ(r.visible_keys(0), 17);
  EXPECT_EQ(r.visible_keys(3), 20);
  EXPECT_EQ(r.visible_blocks(0), (Range{0, 2}));
  EXPECT_EQ(r.legal_blocks(), 2);
}

TEST(WholeRequest, NotCausalSeesEverything) {
  const Request r = whole(4, 20, false);
  EXPECT_EQ(r.visible_keys(0), 20);
  EXPECT_EQ(r.visible_blocks(0), (Range{0, 2}));
  EXPECT_EQ(r.last_position(0), 19);
}

TEST(WholeRequest, MoreQueriesThanKeysLeavesFirstRowsBlind) {
  const Request r = whole(5, 3, true);  // rows stand at -2, -1, 0, 1, 2
  EXPECT_EQ(r.visible_keys(0), 0);
  EXPECT_EQ(r.visible_keys(1), 0);
  EXPECT_EQ(r.visible_keys(2), 1);
  EXPECT_EQ(r.visible_keys(4), 3);
  EXPECT_TRUE(r.visible_blocks(1).empty());
  EXPECT_FALSE(r.is_forced(1, 0, 1, 1));
  EXPECT_TRUE(r.is_forced(2, 0, 1, 0));
}

TEST(WholeRequest, WithoutKeysNothingIsVisible) {
  for (const bool causal : {true, false}) {
    const Request r = whole(3, 0, causal);
    EXPECT_EQ(r.visible_keys(2), 0);
    EXPECT_TRUE(r.visible_blocks(2).empty());
    EXPECT_FALSE(r.is_forced(2, 0, 1, 1));
    EXPECT_EQ(r.legal_blocks(), 0);
  }
}

TEST(WholeRequest, QueryBehindTheEndSeesAllKeysAndForcesTheLastBlock) {
  Request r = whole(1, 40, true);
  r.offset = 1000;
  EXPECT_EQ(r.visible_keys(0), 40);
  EXPECT_EQ(r.last_position(0), 39);
  EXPECT_TRUE(r.is_forced(0, 2, 1, 0));
  EXPECT_FALSE(r.is_forced(0, 1, 1, 0));
}

TEST(ForcedBlocks, LastAndFirstVisibleOnes) {
  const Request r = whole(1, 100, true);  // position 99, blocks 0 .. 6
  const auto forced = [&](std::int64_t local, std::int64_t init) {
    std::string ids;
    for (std::int64_t id = 0; id < 8; ++id) {
      if (r.is_forced(0, id, local, init)) ids += std::to_string(id);
    }
    return ids;
  };
  EXPECT_EQ(forced(0, 0), "");
  EXPECT_EQ(forced(1, 0), "6");
  EXPECT_EQ(forced(2, 1), "056");
  EXPECT_EQ(forced(5, 4), "0123456");
}

// A sequence of 64 keys cut in two shards; the second holds keys 32 .. 63.
Request second_shard(std::int64_t total_k) {
  return {.seqlen_q = 4,
          .seqlen_k = 32,
          .offset = 60,
          .key_offset = 32,
          .total_k = total_k,
          .block_size = 16,
          .causal = true};
}

TEST(Shard, BlocksAreGlobal) {
  const Request r = second_shard(64);
  EXPECT_EQ(r.blocks(), (Range{2, 4}));
  EXPECT_EQ(r.visible_blocks(0), (Range{2, 4}));
  EXPECT_EQ(r.visible_keys(0), 29);  // keys 32 .. 60
  EXPECT_EQ(r.legal_blocks(), 4);
}

TEST(Shard, BehindTheQueryIsInvisible) {
  Request r = second_shard(64);
  r.offset = 20;
  EXPECT_EQ(r.visible_keys(0), 0);
  EXPECT_TRUE(r.visible_blocks(0).empty());
  EXPECT_TRUE(r.is_forced(0, 1, 1, 0));  // of the whole sequence,
  EXPECT_FALSE(r.blocks().contains(1));  // though it lies elsewhere
}

TEST(Shard, FirstShardForcesNothingThatLiesInTheSecond) {
  Request r = second_shard(64);
  r.key_offset = 0;
  for (std::int64_t id = 0; id < 2; ++id) EXPECT_FALSE(r.is_forced(0, id, 1, 0)) << id;
  EXPECT_EQ(r.visible_keys(0), 32);
}

TEST(Shard, UnknownTotalIsLongEnough) {
  const Request r = second_shard(kNoLimit);
  EXPECT_EQ(r.last_position(3), 63);
  EXPECT_EQ(r.visible_keys(3), 32);
  EXPECT_EQ(r.legal_blocks(), kNoLimit);
}

TEST(Request, PositionsBeyond32Bits) {
  Request r = whole(1, 16, true);
  r.key_offset = std::int64_t{1} << 40;
  r.total_k = r.key_offset + 16;
  r.offset = r.key_offset + 15;
  EXPECT_EQ(r.visible_keys(0), 16);
  EXPECT_EQ(r.visible_blocks(0), (Range{std::int64_t{1} << 36, (std::int64_t{1} << 36) + 1}));
}

}  // namespace
}  // namespace msa::core
