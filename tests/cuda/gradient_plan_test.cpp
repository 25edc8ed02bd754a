// SPDX-License-Identifier: MIT
// How gradients are planned and what is refused, on made-up GPUs of every kind.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "cuda/backward_stage.h"
#include "cuda/index_loss_stage.h"
#include "cuda/key_tiles.h"
#include "cuda/layout.h"
#include "cuda/mma/backward/launch.h"
#include "cuda/mma/index_loss/launch.h"
#include "cuda/path.h"
#include "testkit/case.h"
#include "testkit/generate.h"
#include "testkit/support.h"
#include "tests/cuda/made_up.h"

namespace msa::cuda {
namespace {

Problem gradients(const std::string& line) {
  Problem p = testkit::problem_of(testkit::parse_case(line));
  p.device = {DeviceType::Cuda, 0};
  return p;
}

/// What is planned, and in how many bytes.
struct GradientPlan {
  std::string decisions;
  std::size_t bytes;
};

GradientPlan planned(const Problem& p, const GpuInfo& gpu) {
  std::string why;
  const PathRow* row = find_path(p, gpu, why);
  EXPECT_NE(row, nullptr) << why;
  if (row == nullptr) return {};
  Layout layout;
  const std::string decisions = row->plan(p, gpu, layout)->decisions();
  return {decisions, layout.bytes()};
}

bool names_it(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string refusal_of(const Problem& p, const GpuInfo& gpu) {
  std::string why;
  EXPECT_EQ(find_path(p, gpu, why), nullptr);
  return why;
}

TEST(GradientPlans, TakeEveryCaseInsideTheSupportTable) {
  const std::string tests = MSA_TESTS_DIR;
  const auto table = testkit::SupportTable::read(tests + "/support/cuda-mma.txt");
  for (const GpuInfo& gpu : every_kind()) {
    int inside = 0;
    for (const char* file : {"/cases/all.txt", "/cases/smoke.txt", "/cases/emulated.txt"}) {
      for (const testkit::Case& spec : testkit::read_cases(tests + file)) {
        const bool derives = spec.op == Op::SparseAttentionBackward ||
                             spec.op == Op::DenseAttentionBackward || spec.op == Op::IndexLoss;
        if (!derives || !table.contains(spec)) continue;
        ++inside;
        std::string why;
        const Problem p = gradients(testkit::to_line(spec));
        EXPECT_NE(find_path(p, gpu, why), nullptr)
            << gpu.name << ": " << testkit::to_line(spec) << ": " << why;
      }
    }
    EXPECT_GE(inside, 50) << gpu.name;
  }
}

TEST(GradientPlans, SayWhatTheyDoNotTake) {
  for (const auto& [line, reason] :
       {std::pair{"op=sparse_backward dtype=f16 lens=9:500", "beyond f16"},
        std::pair{"op=dense_backward dtype=f32 lens=9:500", "bf16"},
        std::pair{"op=sparse_backward out=f32 lens=9:500", "out and dout"},
        std::pair{"op=sparse_backward dim=96 lens=9:500", "head_dim"},
        std::pair{"op=dense_backward dim=128 value_dim=64 lens=9:500", "value_dim"},
        std::pair{"op=sparse_backward block=32 lens=9:500", "block_size"},
        std::pair{"op=sparse_backward block=192 lens=9:500", "block_size"},
        std::pair{"op=index_loss dtype=f16 lens=9:500", "bf16"},
        std::pair{"op=index_loss index_dtype=f32 lens=9:500", "bf16"},
        std::pair{"op=index_loss index_dim=96 lens=9:500", "index_dim"},
        std::pair{"op=index_loss heads=65/1 lens=9:500", "65"},
        std::pair{"op=index_loss block=32 lens=9:500", "block_size"},
        std::pair{"op=index_loss heads=64/4 index_heads_k=4 lens=1048576:1048576", "MiB"}}) {
    for (const GpuInfo& gpu : every_kind()) {
      const std::string why = refusal_of(gradients(line), gpu);
      EXPECT_TRUE(names_it(why, reason)) << gpu.name << ": " << line << ": '" << why << "'";
    }
  }
}

TEST(GradientPlans, SharedMemoryHoldsTheTiles) {
  for (const GpuInfo& gpu : every_kind()) {
    for (const int dim : {64, 128}) {
      for (const int block : {0, 64, 128}) {
        const auto config = mma::backward::config_for(Storage::Bf16, dim, block, gpu.shared_memory);
        const int ctas = KeyTiles::ctas_per_sm(mma::backward::shared_bytes(config), config.keys,
                                               gpu.shared_memory);
        EXPECT_LE((mma::backward::shared_bytes(config) + 1024) * static_cast<std::size_t>(ctas),
                  gpu.shared_memory + 1024)
            << gpu.name << ' ' << dim << ' ' << block;
        EXPECT_LE(ctas * 2 * config.keys, 256) << "threads of 255 registers";
        EXPECT_EQ(block % config.keys, 0);
      }
      const mma::index_loss::Config config{.head_dim = dim, .index_dim = dim};
      const int ctas = KeyTiles::ctas_per_sm(mma::index_loss::shared_bytes(config), config.keys,
                                             gpu.shared_memory);
      EXPECT_LE((mma::index_loss::shared_bytes(config) + 1024) * static_cast<std::size_t>(ctas),
                gpu.shared_memory + 1024)
          << gpu.name << ' ' << dim;
    }
  }
}

// Two CTAs of 64 keys share an SM of a Hopper card.
TEST(GradientPlans, SmallTilesShareAnSm) {
  const auto config = mma::backward::config_for(Storage::Bf16, 128, 64, kHopper.shared_memory);
  EXPECT_EQ(config.rows, 64);
  EXPECT_EQ(KeyTiles::ctas_per_sm(mma::backward::shared_bytes(config), config.keys,
                                  kHopper.shared_memory),
            2);
  const mma::index_loss::Config loss{};
  EXPECT_EQ(
      KeyTiles::ctas_per_sm(mma::index_loss::shared_bytes(loss), loss.keys, kHopper.shared_memory),
      2);
}

// Small problems at once; larger ones by chunks, with sums of keys in the workspace where these
// fit; scores are made twice where they do not, or where chunks must not show.
TEST(GradientPlans, ChunksFollowTheRoom) {
  const auto order = [](const std::string& line, bool invariant) {
    Problem p = gradients(line);
    p.options.batch_invariant = invariant;
    p.options.isa = "mma";
    return planned(p, kHopper).decisions;
  };
  const std::string small = "op=sparse_backward heads=64/4 topk=16 lens=2048:2048";
  const std::string large = "op=sparse_backward heads=64/4 topk=16 lens=131072:131072";
  EXPECT_TRUE(names_it(order(small, false), "backward_order once\n"));
  EXPECT_TRUE(names_it(order(small, true), "backward_order once\n"));
  EXPECT_TRUE(names_it(order(large, false), "backward_order summed\n"));
  EXPECT_TRUE(names_it(order(large, true), "backward_order twice\n"));
  EXPECT_TRUE(names_it(order("op=sparse_backward heads=64/4 topk=16 lens=1048576:1048576", false),
                       "backward_order twice\n"));
  EXPECT_TRUE(names_it(order("op=dense_backward heads=64/4 lens=32768:32768", false),
                       "backward_order summed\n"));
}

// On Hopper dq comes from tiles of rows, which need no room for shares, unless its tiles would be
// mostly empty or it has no instance.
TEST(GradientPlans, HopperMakesGradientsOfQueriesByRows) {
  const auto plan = [](const std::string& line) { return planned(gradients(line), kHopper); };
  for (const char* line : {"op=sparse_backward heads=64/4 topk=16 lens=131072:131072",
                           "op=sparse_backward heads=64/1 topk=64 lens=9:500",
                           "op=sparse_backward heads=2/1 topk=16 lens=9:500,0:40",
                           "op=dense_backward heads=1/1 lens=9:500",
                           "op=dense_backward heads=64/4 lens=1048576:1048576"})
    EXPECT_TRUE(names_it(plan(line).decisions, "backward_order rows\n")) << line;
  for (const char* line : {"op=sparse_backward heads=8/8 topk=16 lens=9:500",
                           "op=sparse_backward heads=65/1 topk=16 lens=9:500",
                           "op=sparse_backward heads=64/4 topk=65 lens=9:9000",
                           "op=sparse_backward heads=64/4 block=64 lens=9:500",
                           "op=sparse_backward heads=64/4 dim=64 lens=9:500",
                           "op=dense_backward heads=64/4 scale=-1 lens=9:500",
                           "op=dense_backward heads=64/4 batch_invariant=1 lens=9:500"}) {
    EXPECT_TRUE(names_it(plan(line).decisions, "backward_order once\n")) << line;
    EXPECT_FALSE(names_it(plan(line).decisions, "backward_queries")) << line;
  }
  // Beside the rows', shares of lists that share little, where there are blocks enough for it.
  const GradientPlan both = plan("op=sparse_backward heads=64/4 topk=16 lens=131072:131072");
  EXPECT_TRUE(names_it(both.decisions, "backward_shares "));
  EXPECT_LE(both.bytes, std::size_t{1216} << 20);
  for (const char* line : {"op=sparse_backward heads=64/4 topk=16 lens=8192:8192",
                           "op=sparse_backward heads=10/1 topk=16 lens=131072:131072",
                           "op=dense_backward heads=64/4 lens=131072:131072"})
    EXPECT_FALSE(names_it(plan(line).decisions, "backward_shares ")) << line;
}

// Hopper's kernels of the index loss are of one group, one width and one block.
TEST(GradientPlans, HoppersIndexLossHasTilesOf128KeysWhereItServes) {
  const auto keys = [](const char* line, const GpuInfo& gpu) {
    const std::string decisions = planned(gradients(line), gpu).decisions;
    return names_it(decisions, "index_loss_tile 128 keys")  ? 128
           : names_it(decisions, "index_loss_tile 64 keys") ? 64
                                                            : 0;
  };
  for (const char* line : {"op=index_loss heads=64/4 index_heads_k=1 topk=16 lens=8192:8192",
                           "op=index_loss heads=16/1 lists=0 lens=9:500"})
    EXPECT_EQ(keys(line, kHopper), 128) << line;
  for (const char* line :
       {"op=index_loss heads=8/1 topk=16 lens=9:500", "op=index_loss heads=32/1 topk=16 lens=9:500",
        "op=index_loss heads=16/1 block=64 topk=16 lens=9:500",
        "op=index_loss heads=16/1 dim=64 topk=16 lens=9:500",
        "op=index_loss heads=16/1 index_dim=64 lists=0 lens=9:500"})
    EXPECT_EQ(keys(line, kHopper), 64) << line;
  Problem p = gradients("op=index_loss heads=64/4 topk=16 lens=9:500");
  p.options.isa = "mma";
  EXPECT_TRUE(names_it(planned(p, kHopper).decisions, "index_loss_tile 64 keys"));
}

// Heads that share index keys go in one launch where a part of each and of each tile has room.
TEST(GradientPlans, HeadsThatShareIndexKeysTakeTurnsWhereTheirPartsHaveNoRoom) {
  const auto plan = [](const std::string& line) { return planned(gradients(line), kHopper); };
  const auto heads = [&](const std::string& line, const std::string& said) {
    return names_it(plan(line).decisions, "index_loss_heads_at_once " + said + "\n");
  };
  EXPECT_TRUE(heads("op=index_loss heads=64/4 index_heads_k=1 topk=16 lens=8192:8192", "4 of 4"));
  EXPECT_TRUE(heads("op=index_loss heads=64/4 index_heads_k=4 topk=16 lens=8192:8192", "1 of 1"));
  EXPECT_TRUE(
      heads("op=index_loss heads=64/4 index_heads_k=1 topk=16 lens=131072:131072", "4 of 4"));
  EXPECT_TRUE(
      heads("op=index_loss heads=64/4 index_heads_k=1 topk=16 lens=1048576:1048576", "1 of 4"));
  EXPECT_TRUE(heads("op=index_loss heads=32/32 index_heads_k=1 topk=4 lens=9:500", "32 of 32"));
  EXPECT_TRUE(heads("op=index_loss heads=33/33 index_heads_k=1 topk=4 lens=9:500", "1 of 33"));
  EXPECT_LE(plan("op=index_loss heads=64/4 index_heads_k=1 topk=16 lens=131072:131072").bytes,
            std::size_t{1} << 30);
}

TEST(GradientPlans, ItemsOfABatchInvariantPlanDependOnNoBatch) {
  Problem p = gradients("op=sparse_backward heads=64/4 topk=16 lens=1048576:1048576");
  p.options.batch_invariant = true;
  EXPECT_TRUE(names_it(refusal_of(p, kHopper), "batch_invariant"));
  p = gradients("op=index_loss heads=64/4 topk=16 lens=8192:8192");
  p.options.batch_invariant = true;
  EXPECT_TRUE(names_it(refusal_of(p, kHopper), "batch"));
}

TEST(GradientPlans, WorkspaceStaysSmall) {
  for (const char* line : {"op=sparse_backward heads=64/4 topk=16 lens=8192:8192",
                           "op=sparse_backward heads=64/4 topk=16 lens=131072:131072",
                           "op=sparse_backward heads=64/4 topk=16 lens=1048576:1048576",
                           "op=sparse_backward heads=64/4 topk=16 lens=64x4096:4096",
                           "op=dense_backward heads=64/4 lens=8192:8192",
                           "op=dense_backward heads=64/4 lens=131072:131072",
                           "op=dense_backward heads=64/4 lens=1048576:1048576",
                           "op=index_loss heads=64/4 index_heads_k=1 topk=16 lens=131072:131072",
                           "op=index_loss heads=64/4 index_heads_k=1 topk=16 lens=1048576:1048576",
                           "op=index_loss heads=64/4 index_heads_k=1 lists=0 lens=32768:32768"}) {
    for (const GpuInfo& gpu : every_kind()) {
      const GradientPlan plan = planned(gradients(line), gpu);
      EXPECT_LE(plan.bytes, std::size_t{2} << 30) << gpu.name << ": " << line;
      EXPECT_EQ(plan.bytes % kWorkspaceAlignment, 0U);
    }
  }
}

// Whatever the tokens of a tile, its items have room, and so do the parts of split ones.
TEST(GradientPlans, ItemsHaveRoom) {
  for (const char* line : {"op=sparse_backward heads=64/4 topk=16 lens=1048576:1048576",
                           "op=sparse_backward heads=8/8 topk=4 block=64 lens=5:70,300:9000",
                           "op=dense_backward heads=3/3 lens=1000:100"}) {
    const Problem p = gradients(line);
    const bool listed = p.op == Op::SparseAttentionBackward;
    const KeyTiles::Shape shape(p, listed, 64);
    const KeyTiles::Cut cut{
        .group = p.attention.heads_q / p.attention.heads_kv, .ctas = 132, .max_parts = 1024};
    const std::int64_t rows = p.bounds.total_q;
    const auto limits = KeyTiles::limits(shape, rows, cut);
    const std::int64_t pairs = rows * shape.places * shape.heads;
    const std::int64_t tiles = shape.all_tiles * shape.heads;
    const auto items = [&](std::int64_t count) {
      return (count + limits.item_tokens - 1) / limits.item_tokens;
    };
    // All pairs in one tile of each head; spread evenly; in half of the tiles; as many split tiles
    // as there can be.
    for (const std::int64_t used :
         {shape.heads, tiles, std::max<std::int64_t>(1, tiles / 2),
          std::clamp<std::int64_t>(pairs / (limits.item_tokens + 1), 1, tiles)}) {
      const std::int64_t each = items(pairs / used);
      EXPECT_LE(used * each, limits.max_items) << line << ' ' << used;
      if (each > 1) {
        EXPECT_LE(used * each, limits.max_parts) << line << ' ' << used;
      }
    }
  }
}

// A call may have any number of rows up to the plan's.
TEST(GradientPlans, FewerRowsFitTheRoomOfMore) {
  const Problem p = gradients("op=sparse_backward heads=48/4 topk=16 lens=20000:20000");
  const KeyTiles::Shape shape(p, true, 128);
  for (const std::int64_t item_rows : {0, 65536}) {
    for (const std::int64_t ctas : {1, 7, 132, 600}) {
      for (const bool shared : {false, true}) {
        const KeyTiles::Cut cut{.group = 12,
                                .ctas = ctas,
                                .max_parts = 2048,
                                .heads = shared ? 0 : 2,
                                .shared_tiles = shared,
                                .item_rows = item_rows};
        const auto most = KeyTiles::most(shape, 20000, cut);
        for (std::int64_t rows = 0; rows <= 20000; rows += rows < 300 ? 1 : 37) {
          const auto limits = KeyTiles::limits(shape, rows, cut);
          ASSERT_LE(limits.max_items, most.max_items) << rows << ' ' << ctas << ' ' << item_rows;
          ASSERT_LE(limits.max_parts, most.max_parts) << rows << ' ' << ctas << ' ' << item_rows;
          if (shared) {
            ASSERT_EQ(limits.max_parts, limits.max_items) << "every item may be one of several";
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace msa::cuda
