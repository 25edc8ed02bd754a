// SPDX-License-Identifier: MIT
// What the instruction set mma plans and refuses, on made-up GPUs of every kind.
#include <gtest/gtest.h>

#include <string>

#include "cuda/attend_stage.h"
#include "cuda/layout.h"
#include "cuda/mma/attend/launch.h"
#include "cuda/path.h"
#include "testkit/case.h"
#include "testkit/generate.h"
#include "testkit/support.h"
#include "tests/cuda/made_up.h"

namespace msa::cuda {
namespace {

Problem forced(const std::string& line) {
  Problem p = testkit::problem_of(testkit::parse_case(line));
  p.device = {DeviceType::Cuda, 0};
  p.options.isa = "mma";
  return p;
}

TEST(MmaPlans, TakeEveryCaseInsideTheSupportTable) {
  const std::string tests = MSA_TESTS_DIR;
  const auto table = testkit::SupportTable::read(tests + "/support/cuda-mma.txt");
  for (const GpuInfo& gpu : every_kind()) {
    int inside = 0, attends = 0;
    for (const char* file : {"/cases/cuda.txt", "/cases/sanitizer.txt"}) {
      for (const testkit::Case& spec : testkit::read_cases(tests + file)) {
        if (!table.contains(spec)) continue;
        ++inside;
        std::string why;
        const Problem p = forced(testkit::to_line(spec));
        const PathRow* row = find_path(p, gpu, why);
        ASSERT_NE(row, nullptr) << gpu.name << ": " << testkit::to_line(spec) << ": " << why;
        EXPECT_EQ(row->isa, &kMma);
        Layout layout;
        const std::string decisions = row->plan(p, gpu, layout)->decisions();
        attends += decisions.find("attend") != std::string::npos ? 1 : 0;
      }
    }
    EXPECT_GE(inside, 400) << gpu.name;
    EXPECT_GE(attends, 300) << gpu.name;
  }
}

// Two CTAs of four warps an SM, or one of eight where two do not fit.
TEST(MmaPlans, TilesFitTheSharedMemoryOfEveryKind) {
  using mma::attend::Shape;
  using mma::attend::shape_for;
  struct Expected {
    int capability;
    std::size_t kib;
    Shape wide, narrow;  // for 128 columns and for 64
  };
  for (const auto& [capability, kib, wide, narrow] : {Expected{80, 163, {4, 3}, {4, 4}},
                                                      {86, 99, {8, 4}, {4, 4}},
                                                      {90, 227, {4, 4}, {4, 4}},
                                                      {100, 227, {4, 4}, {4, 4}},
                                                      {120, 99, {8, 4}, {4, 4}},
                                                      {130, 227, {8, 4}, {4, 4}}}) {
    EXPECT_EQ(shape_for(capability, kib << 10, 128, false), wide) << capability;
    EXPECT_EQ(shape_for(capability, kib << 10, 64, false), narrow) << capability;
    EXPECT_EQ(shape_for(capability, kib << 10, 128, true), (Shape{8, 4})) << capability;
  }
  for (const GpuInfo& gpu : every_kind()) {
    for (const int dim : {64, 128}) {
      const auto [warps, stages] =
          shape_for(gpu.major * 10 + gpu.minor, gpu.shared_memory, dim, false);
      const std::size_t cta = static_cast<std::size_t>(mma::attend::tile_bytes(dim, stages)) +
                              mma::attend::kBesideTiles;
      EXPECT_LE(cta + mma::attend::kScaleBytes, gpu.shared_memory) << gpu.name;
      const int ctas = mma::attend::ctas_per_sm({.warps = warps});
      EXPECT_LE((cta + 1024) * static_cast<std::size_t>(ctas), gpu.shared_memory + 1024)
          << gpu.name << ' ' << dim;
    }
  }
}

TEST(MmaPlans, AttentionSaysWhatItDoesNotTake) {
  struct Refused {
    const char* line;
    const char* reason;
  };
  for (const auto& [line, reason] : {Refused{"op=sparse dtype=f32", "bf16 and f16"},
                                     {"op=dense dim=96", "head_dim"},
                                     {"op=sparse block=32", "block_size"},
                                     {"op=sparse topk=65", "topk"},
                                     {"op=sparse page=48", "multiple of 64"},
                                     {"op=dense kv=e4m3 dim=64", "head_dim"},
                                     {"op=dense scale=0", "softmax_scale"}}) {
    const std::string why = MmaAttendStage::rejects(forced(line), line[3] == 's');
    EXPECT_NE(why.find(reason), std::string::npos) << line << ": '" << why << "'";
  }
  EXPECT_EQ(MmaAttendStage::rejects(forced("op=sparse page=192"), true), "");
}

// The work of a few tiles is cut so that every SM has some.
TEST(MmaPlans, FewTilesSplitOverTheMultiprocessors) {
  for (const GpuInfo& gpu : every_kind()) {
    Layout layout;
    const MmaAttendStage chunk(forced("op=dense lens=16:131072"), gpu, false, layout);
    EXPECT_EQ(chunk.decisions().find("attend_splits 1\n"), std::string::npos) << gpu.name;
    const MmaAttendStage whole(forced("op=dense lens=32768:32768"), gpu, false, layout);
    EXPECT_NE(whole.decisions().find("attend_splits 1\n"), std::string::npos) << gpu.name;
  }
}

}  // namespace
}  // namespace msa::cuda
