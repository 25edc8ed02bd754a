// SPDX-License-Identifier: MIT
// The drift regime keeps its promise: 8 neighbouring queries of 64/4/128 list 20 to 24 distinct
// blocks.
#include <gtest/gtest.h>

#include <cstdio>

#include "testkit/block_lists.h"
#include "testkit/generate.h"
#include "testkit/oracle.h"

namespace msa::testkit {
namespace {

/// Mean distinct blocks of groups of 8 queries spread over the sequence, from a real selection of
/// each group.
double sampled_blocks_per_8(std::int64_t tokens, int groups) {
  const std::string length = std::to_string(tokens);
  Data data(parse_case("op=select heads=64/4 regime=drift lens=" + length + ":" + length));
  double sum = 0;
  for (int g = 0; g < groups; ++g) {
    const std::int64_t first = (2 * g + 1) * tokens / (2 * groups) / 8 * 8;
    std::vector<std::int32_t> numbers{0, 8, static_cast<std::int32_t>(tokens),
                                      static_cast<std::int32_t>(first)};
    std::vector<std::int32_t> ids(8 * 4 * 16);
    Operands o;
    o.index_q = narrow(data.operands().index_q, 0, first, 8);
    o.index_k = data.operands().index_k;
    o.batch.cu_seqlens_q = make_tensor(&numbers[0], DType::I32, {2});
    o.batch.seqlens_k = make_tensor(&numbers[2], DType::I32, {1});
    o.batch.q_offsets = make_tensor(&numbers[3], DType::I32, {1});
    o.block_ids = make_tensor(ids.data(), DType::I32, {8, 4, 16});
    run_once(Op::SelectBlocks, o, data.settings());
    sum += blocks_per_8(o.block_ids, o.batch);
  }
  return sum / groups;
}

TEST(Drift, NeighboursShareMostBlocksAt32K) {
  const double blocks = sampled_blocks_per_8(32768, 24);
  std::printf("blocks_per_8 at 32K: %.2f\n", blocks);
  EXPECT_GE(blocks, 20);
  EXPECT_LE(blocks, 24);
}

TEST(Drift, NeighboursShareMostBlocksAt128K) {
  const double blocks = sampled_blocks_per_8(131072, 16);
  std::printf("blocks_per_8 at 128K: %.2f\n", blocks);
  EXPECT_GE(blocks, 20);
  EXPECT_LE(blocks, 24);
}

TEST(Drift, GivenListsShareAsMuch) {
  for (const char* lens : {"32768:32768", "4096:131072"}) {
    Data data(parse_case(std::string("op=invert heads=64/4 regime=drift lens=") + lens));
    const double blocks = blocks_per_8(data.operands().block_ids_in, data.operands().batch);
    std::printf("blocks_per_8 of given lists, %s: %.2f\n", lens, blocks);
    EXPECT_GE(blocks, 20) << lens;
    EXPECT_LE(blocks, 24) << lens;
  }
}

TEST(Drift, RandomListsShareLittle) {
  Data data(parse_case("op=invert heads=64/4 lens=512:32768"));
  EXPECT_GT(blocks_per_8(data.operands().block_ids_in, data.operands().batch), 60);
}

}  // namespace
}  // namespace msa::testkit
