// SPDX-License-Identifier: MIT
// What the instruction set mma plans of selection and of decode, on made-up GPUs of every kind.
#include <gtest/gtest.h>

#include <string>

#include "cuda/common/decode/launch.h"
#include "cuda/decode_stage.h"
#include "cuda/mma/decode/attend/launch.h"
#include "cuda/mma/decode/score/launch.h"
#include "cuda/mma/select/config.h"
#include "cuda/path.h"
#include "cuda/select_stage.h"
#include "testkit/case.h"
#include "testkit/generate.h"
#include "tests/cuda/made_up.h"

namespace msa::cuda {
namespace {

Problem mma_problem(const std::string& line) {
  Problem p = testkit::problem_of(testkit::parse_case(line));
  p.device = {DeviceType::Cuda, 0};
  p.options.isa = "mma";
  return p;
}

std::string decisions(const std::string& line, const GpuInfo& gpu, std::string* name = nullptr) {
  std::string why;
  const Problem p = mma_problem(line);
  const PathRow* row = find_path(p, gpu, why);
  if (row == nullptr) return "refused: " + why;
  if (name != nullptr) *name = row->isa->name + std::string(" ") + row->name;
  Layout layout;
  return row->plan(p, gpu, layout)->decisions();
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(MmaSelectPlans, RequestsOfAFewTokensAreDecode) {
  for (const GpuInfo& gpu : every_kind()) {
    for (const std::string op : {"dense", "sparse", "msa", "scores", "select"}) {
      std::string name;
      decisions("op=" + op + " lens=8:5000", gpu, &name);
      EXPECT_EQ(name, "mma decode") << gpu.name << ' ' << op;
      const bool attends = op != "scores" && op != "select";
      decisions("op=" + op + " lens=9:5000", gpu, &name);
      EXPECT_EQ(name, attends ? "mma attention" : "mma select") << gpu.name << ' ' << op;
    }
  }
}

// As many CTAs of scoring as stand side by side: a card that holds fewer than were planned would
// take the shares of the others behind them.
TEST(MmaSelectPlans, ScoringHasAsManyCtasAsFit) {
  for (const GpuInfo& gpu : every_kind()) {
    const int fit = gpu.shared_memory >= 160 << 10 ? 2 : 1;
    const auto planned = [&](int ctas) {
      return "decode_score " + std::to_string(ctas * gpu.multiprocessors) + " CTAs\n";
    };
    EXPECT_TRUE(has(decisions("op=select lens=1:1048576", gpu), planned(fit))) << gpu.name;
    EXPECT_TRUE(has(decisions("op=select lens=8:1048576", gpu), planned(1))) << gpu.name;
  }
  EXPECT_EQ(mma::decode::score_ctas_per_sm(1), 2);
  EXPECT_EQ(mma::decode::score_ctas_per_sm(2), 1);
}

TEST(MmaSelectPlans, SplitsFillTheCtasThatFit) {
  for (const GpuInfo& gpu : every_kind()) {
    const int sms = gpu.shared_memory >= 160 << 10 ? gpu.multiprocessors : gpu.multiprocessors / 2;
    const std::string splits = "decode_splits " + std::to_string(2 * sms / 4) + "\n";
    EXPECT_TRUE(has(decisions("op=dense heads=64/4 lens=1:1048576", gpu), splits))
        << gpu.name << ": " << decisions("op=dense heads=64/4 lens=1:1048576", gpu);
  }
}

// Its storage beside the scratch takes less than 2 KB.
TEST(MmaSelectPlans, AnySelectionFitsEveryKind) {
  for (const GpuInfo& gpu : every_kind())
    EXPECT_LE(static_cast<std::size_t>(common::decode::kMostSelectScratch + 2048),
              gpu.shared_memory)
        << gpu.name;
}

/// Workspace of a stage.
template <class Stage>
std::size_t workspace(const std::string& line) {
  Layout layout;
  const Stage stage(mma_problem(line), kHopper, layout);
  return layout.bytes();
}

// Attention selects for itself where the scratch fits its ring: up to 8,192 blocks among four
// threads a maximum, up to 16,384 with one each. Behind that ids lie in between.
TEST(MmaSelectPlans, AttentionSelectsWhereItsRingHasRoom) {
  const auto more = [](const std::string& keys) {
    const std::string line = "op=msa heads=64/4 topk=16 lens=400x1:" + keys;
    return workspace<MmaDecodeStage>(line) - workspace<DecodeStage>(line);
  };
  constexpr std::size_t kIds = std::size_t{400} * 4 * 16 * sizeof(int);
  EXPECT_EQ(more("2048"), std::size_t{0});
  EXPECT_EQ(more("1048576"), std::size_t{0});
  EXPECT_EQ(more("2097152"), std::size_t{0});
  EXPECT_GE(more("2099200"), kIds);
  EXPECT_LT(more("2099200"), kIds + 4096);
  EXPECT_EQ(common::decode::select_lanes(16, 8192, mma::decode::kTileRingBytes), 4);
  EXPECT_EQ(common::decode::select_lanes(16, 8193, mma::decode::kTileRingBytes), 1);
}

// Few CTAs of attention wait beside scoring, in the place of as many of its CTAs, where launches
// overlap and an SM holds two CTAs.
TEST(MmaSelectPlans, AttentionOfFewRowsWaitsBesideScoring) {
  for (const GpuInfo& gpu : every_kind()) {
    const bool waits = gpu.major >= 9 && gpu.shared_memory >= 160 << 10;
    const auto scoring = [&](const std::string& line) {
      const std::string text = decisions(line, gpu);
      const std::size_t at = text.find("decode_score ");
      return at == std::string::npos ? 0 : std::stoi(text.substr(at + 13));
    };
    const int alone = scoring("op=select heads=64/4 lens=1:1048576");
    const int splits = 8;
    EXPECT_TRUE(has(decisions("op=msa heads=64/4 lens=1:1048576", gpu), "decode_splits 8\n"));
    EXPECT_EQ(scoring("op=msa heads=64/4 lens=1:1048576"), alone - (waits ? 4 * splits : 0))
        << gpu.name;
    EXPECT_EQ(scoring("op=msa heads=64/4 lens=1:4194304"), alone) << gpu.name;
    EXPECT_EQ(scoring("op=msa heads=64/4 lens=32x1:131072"), alone) << gpu.name;
    EXPECT_EQ(scoring("op=msa heads=64/4 lens=1:1048576 page=128 filter=1"), alone) << gpu.name;
  }
}

TEST(MmaSelectPlans, AFilterIsTakenAndNotRead) {
  const std::string line = "op=select filter=1 page=128 lens=131072:131072";
  EXPECT_FALSE(has(decisions(line, kHopper), "select_filter"));
  EXPECT_TRUE(has(decisions(line, kHopper), "select_chunk")) << decisions(line, kHopper);
  // Decode reads it, with the kernels that it shares.
  EXPECT_TRUE(
      has(decisions("op=select filter=1 page=128 lens=32x1:131072", kHopper), "decode_filter"));
}

// Two CTAs an SM take items in turn.
TEST(MmaSelectPlans, SpansAreCutForTwoCtasAnSm) {
  const auto spans = [](const std::string& text) {
    return std::stoi(text.substr(text.find("select_spans ") + 13));
  };
  EXPECT_EQ(mma::select::kCtasPerSm, 2);
  const Problem p = mma_problem("op=select heads=4/4 lens=128:1048576");
  Layout sm90, mma;
  const int few = spans(SelectStage(p, kHopper, sm90).decisions());
  const int many = spans(MmaSelectStage(p, kHopper, mma).decisions());
  EXPECT_GT(many, few);
}

}  // namespace
}  // namespace msa::cuda
