// SPDX-License-Identifier: MIT
// One CUDA graph, captured once, replayed with other lengths; one plan on two streams; tensors past
// 2^31 elements. Needs a GPU: ./test.sh --gpu runs it, ctest does not.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gpu_case.h"
#include "testkit/compare.h"
#include "testkit/requests.h"

namespace msa {
namespace {

using gpu::Capture;
using gpu::GpuCase;
using gpu::on_gpu;
using testkit::Data;
using testkit::Operands;
using testkit::Placement;

constexpr int kReplays = 100;

std::string difference(const Data& data) {
  return testkit::compare(data.problem(), data.operands(), {.exact_scores = true}).what;
}

/// New lengths within the planned bounds, written over those in host memory. Merges have none, and
/// given lists would name blocks that shorter requests lack.
void draw_lengths(const Data& data, std::mt19937& random) {
  const Batch& batch = data.operands().batch;
  if (!batch.cu_seqlens_q || data.operands().block_ids_in) return;
  auto* starts = static_cast<std::int32_t*>(batch.cu_seqlens_q.data);
  auto* keys = static_cast<std::int32_t*>(batch.seqlens_k.data);
  const auto rows = static_cast<std::int32_t>(data.operands().q.shape[0]);
  const auto below = [&](std::int64_t bound) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(bound + 1));
  };
  for (std::int64_t b = 0; b < batch.seqlens_k.shape[0]; ++b) {
    const auto& most = data.spec().lengths[static_cast<std::size_t>(b)];
    starts[b + 1] = starts[b] + std::min(below(most.seqlen_q), rows - starts[b]);
    keys[b] = below(most.seqlen_k);
  }
}

void replay(const std::string& line) {
  const auto space = testkit::cuda_memory(0);
  Data data(testkit::parse_case(line));
  const Plan plan = make_plan(on_gpu(data.problem(), *space));
  testkit::GuardedWorkspace workspace(plan.workspace_bytes(), *space);
  Placement placement(data, *space);
  const Operands operands = placement.prepare();
  space->synchronize();
  const Capture graph(static_cast<gpu::CudaStream>(space->stream().handle),
                      [&] { testkit::run(plan, operands, workspace.view(), space->stream()); });
  std::mt19937 random(7);
  for (int n = 0; n < kReplays; ++n) {
    draw_lengths(data, random);
    placement.prepare();
    graph.launch();
    placement.fetch();
    EXPECT_FALSE(check(plan, workspace.view(), space->stream()).has_value()) << line << ", " << n;
    EXPECT_TRUE(workspace.guards_intact());
    ASSERT_EQ(difference(data), "") << line << ", replay " << n;
  }
}

TEST(Graph, DecodeReplaysWithOtherLengths) {
  replay("op=msa heads=16/2 block=64 topk=4 lens=5x2:1500 page=64 regime=integers lse=1");
}

TEST(Graph, DecodeOverCodesReplaysWithOtherLengths) {
  replay("op=msa heads=16/2 topk=4 kv=e4m3/token lens=5x2:1500 page=64 regime=integers lse=1");
}

TEST(Graph, DecodeOfManyRequestsReplaysWithOtherLengths) {
  replay("op=msa heads=16/4 topk=16 lens=24x8:2600 page=128 regime=integers lse=1");
}

TEST(Graph, PrefillReplaysWithOtherLengths) {
  replay(
      "op=msa heads=16/2 block=64 topk=4 lens=60:700,40:500,20:300 page=64 regime=integers lse=1");
}

TEST(Graph, DenseReplaysWithOtherLengths) {
  replay("op=dense heads=16/2 lens=60:300,40:200,20:300 page=64 regime=integers lse=1");
}

TEST(Graph, DenseOverCodesReplaysWithOtherLengths) {
  replay("op=dense heads=16/2 kv=e4m3/page lens=60:300,40:200,20:300 page=64 lse=1");
}

/// One graph, replayed over tensors of the same shapes whose contents are others: lengths, lists,
/// scores, vectors, pages. `lens` share their totals and their longest request.
void replay_inputs(const std::string& line, const std::vector<std::string>& lens) {
  GpuCase call(line + " lens=" + lens[0]);
  const Capture graph(call.stream(), [&] { call.run(); });
  for (std::size_t n = 0; n < 3 * lens.size(); ++n) {
    const std::string other =
        line + " lens=" + lens[n % lens.size()] + " seed=" + std::to_string(n);
    const Data source(testkit::parse_case(other));
    const auto& from = source.buffers();
    const auto& to = call.data().buffers();
    ASSERT_EQ(from.size(), to.size()) << other;
    for (std::size_t i = 0; i < to.size(); ++i) {
      ASSERT_EQ(from[i].bytes(), to[i].bytes()) << other << ": " << to[i].name();
      std::memcpy(to[i].data(), from[i].data(), to[i].bytes());
    }
    call.refill();
    graph.launch();
    call.fetch();
    EXPECT_FALSE(call.fault().has_value()) << other;
    EXPECT_TRUE(call.guarded().guards_intact());
    ASSERT_EQ(call.difference(), "") << other;
  }
}

TEST(Graph, SparseReplaysWithOtherListsAndLengths) {
  const std::vector<std::string> prefill{"119:900,1:500,0:300", "60:500,40:900,20:300",
                                         "20:300,60:900,40:500"};
  const std::vector<std::string> decode{"8:900,1:90,2:500", "1:1,8:900,2:2", "0:0,3:900,8:64"};
  const std::string line =
      "op=sparse heads=16/2 block=64 topk=4 page=64 pool=64 lse=1 order=shuffled partial=1";
  replay_inputs(line, prefill);
  replay_inputs(line, decode);
  // Lists long enough for keys outermost.
  replay_inputs("op=sparse heads=16/1 topk=16 page=128 pool=200 lse=1",
                {"365:9000,5:5", "300:9000,70:5000", "70:5000,300:9000"});
  replay_inputs("op=sparse heads=16/1 topk=16 kv=e4m3/page page=128 pool=200 lse=1",
                {"365:9000,5:5", "300:9000,70:5000", "70:5000,300:9000"});
}

TEST(Graph, SelectReplaysWithOtherVectorsAndLengths) {
  for (const char* regime : {" regime=random", " regime=ties"}) {
    const std::string line =
        std::string("op=select heads=4/4 block=64 topk=4 page=64 pool=64 chosen=1") + regime;
    replay_inputs(line, {"119:900,1:500,0:300", "60:500,40:900,20:300", "20:300,60:900,40:500"});
    replay_inputs(line, {"8:900,1:90,2:500", "1:1,8:900,2:2", "0:0,3:900,8:64"});
  }
}

// Bounds for which a plan reads the filter, whatever the lengths are.
TEST(Graph, FilteredSelectionReplaysWithOtherVectorsAndLengths) {
  for (const char* hostile : {"none", "nan_index"}) {
    replay_inputs(
        std::string("op=select filter=1 heads=2/2 block=64 topk=4 page=64 pool=1300 chosen=1 "
                    "hostile=") +
            hostile,
        {"2:80000,1:1300,1:700,0:3", "0:3,1:80000,1:1,2:64", "1:900,2:80000,0:0,1:90"});
    replay_inputs(std::string("op=select filter=1 heads=2/2 block=64 topk=4 page=64 pool=300 "
                              "slack=40000 chosen=1 hostile=") +
                      hostile,
                  {"419:9000,1:500,0:300", "60:500,340:9000,20:300", "20:300,60:900,340:9000"});
  }
}

TEST(Graph, ScoresReplayWithOtherVectorsAndLengths) {
  const std::string line = "op=scores heads=4/4 block=64 page=64 pool=64";
  replay_inputs(line, {"119:900,1:500,0:300", "60:500,40:900,20:300", "20:300,60:900,40:500"});
  replay_inputs(line, {"8:900,1:90,2:500", "1:1,8:900,2:2", "0:0,3:900,8:64"});
}

TEST(Graph, TopkReplaysWithOtherScoresAndLengths) {
  const std::string line = "op=topk heads=4/4 block=64 topk=8 chosen=1";
  replay_inputs(line, {"119:6000,1:300,0:300", "60:6000,40:500,20:300", "20:300,60:6000,40:500"});
  replay_inputs(line + " regime=ties", {"3:6000,0:90", "2:6000,1:1", "1:64,2:6000"});
}

TEST(Graph, MsaReplaysWithOtherVectorsAndLengths) {
  const std::string line =
      "op=msa heads=16/2 block=64 topk=4 page=64 pool=64 lse=1 regime=integers";
  replay_inputs(line, {"119:900,1:500,0:300", "60:500,40:900,20:300", "20:300,60:900,40:500"});
  replay_inputs(line, {"8:900,1:90,2:500", "1:1,8:900,2:2", "0:0,3:900,8:64"});
}

TEST(Graph, MergesAndInversionReplay) {
  replay("op=merge_states heads=16/2 lens=60:0 parts=5 lse=1 hostile=nan");
  replay("op=merge_selections heads=4/4 topk=16 lens=60:0 parts=5 chosen=1 regime=ties");
  replay("op=invert heads=16/2 block=64 topk=16 lens=60:3000,9:300 partial=1 pad_rows=2 slack=3");
}

TEST(Graph, StoresReplayWithOtherRowsAndLengths) {
  const std::vector<std::string> lens{"20:90,1:200,3:3", "3:200,20:20,1:1", "1:17,3:200,20:33"};
  for (const char* kv : {"auto", "e4m3/token", "nvfp4/tensor"})
    replay_inputs(std::string("op=quantize heads=2/2 dim=32 page=16 pool=40 kv=") + kv, lens);
  replay_inputs("op=quantize_index heads=2/2 dim=32 page=16 pool=40", lens);
}

TEST(Streams, OnePlanOnTwo) {
  const std::string line = "op=msa heads=16/2 block=64 topk=4 lens=70:900,9:300 regime=integers";
  const auto first = testkit::cuda_memory(0), second = testkit::cuda_memory(0);
  Data data_a(testkit::parse_case(line)), data_b(testkit::parse_case(line + " seed=2"));
  const Plan plan = make_plan(on_gpu(data_a.problem(), *first));
  testkit::GuardedWorkspace workspace_a(plan.workspace_bytes(), *first);
  testkit::GuardedWorkspace workspace_b(plan.workspace_bytes(), *second);
  Placement at_a(data_a, *first), at_b(data_b, *second);
  const Operands a = at_a.prepare(), b = at_b.prepare();
  for (int n = 0; n < 50; ++n) {
    testkit::run(plan, a, workspace_a.view(), first->stream());
    testkit::run(plan, b, workspace_b.view(), second->stream());
  }
  at_a.fetch();
  at_b.fetch();
  EXPECT_EQ(difference(data_a), "");
  EXPECT_EQ(difference(data_b), "");
}

TEST(Offsets, PoolsPastTwoToTheThirtyOneElements) {
  const auto space = testkit::cuda_memory(0);
  testkit::VerifyOptions options{.space = space.get(), .repeats = 1};
  options.under_test.backend = "cuda";
  for (const char* ops : {"op=sparse lens=20:900", "op=msa lens=2:900"}) {
    const testkit::Case spec = testkit::parse_case(
        std::string(ops) + " heads=16/2 dim=64 block=64 topk=4 page=64 pool=300000 lse=1");
    const testkit::Outcome outcome = testkit::verify(spec, options);
    EXPECT_EQ(outcome.result, testkit::Result::Passed) << outcome.reason;
  }
}

}  // namespace
}  // namespace msa
