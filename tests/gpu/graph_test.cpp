// SPDX-License-Identifier: MIT
// One CUDA graph, captured once, replayed with other lengths; one plan on two streams; tensors past
// 2^31 elements. Needs a GPU: ./test.sh --gpu runs it, ctest does not.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "testkit/compare.h"
#include "testkit/cuda_memory.h"
#include "testkit/generate.h"
#include "testkit/requests.h"
#include "testkit/verify.h"

namespace msa {
namespace {

using testkit::Data;
using testkit::MemorySpace;
using testkit::Operands;
using testkit::Placement;

constexpr int kReplays = 100;

Problem on_gpu(Problem problem, const MemorySpace& space) {
  problem.device = space.device();
  problem.options.backend = "cuda";
  return problem;
}

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

class Capture {
 public:
  Capture(cudaStream_t stream, const auto& run) : stream_(stream) {
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    run();
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    EXPECT_EQ(cudaGraphInstantiate(&exec_, graph, 0), cudaSuccess);
    cudaGraphDestroy(graph);
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  ~Capture() { cudaGraphExecDestroy(exec_); }
  void launch() const { EXPECT_EQ(cudaGraphLaunch(exec_, stream_), cudaSuccess); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t exec_ = nullptr;
};

void replay(const std::string& line) {
  const auto space = testkit::cuda_memory(0);
  Data data(testkit::parse_case(line));
  const Plan plan = make_plan(on_gpu(data.problem(), *space));
  testkit::GuardedWorkspace workspace(plan.workspace_bytes(), *space);
  Placement placement(data, *space);
  const Operands operands = placement.prepare();
  space->synchronize();
  const Capture graph(static_cast<cudaStream_t>(space->stream().handle),
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

TEST(Graph, PrefillReplaysWithOtherLengths) {
  replay(
      "op=msa heads=16/2 block=64 topk=4 lens=60:700,40:500,20:300 page=64 regime=integers lse=1");
}

TEST(Graph, DenseReplaysWithOtherLengths) {
  replay("op=dense heads=16/2 lens=60:300,40:200,20:300 page=64 regime=integers lse=1");
}

TEST(Graph, MergesAndInversionReplay) {
  replay("op=merge_states heads=16/2 lens=60:0 parts=5 lse=1 hostile=nan");
  replay("op=merge_selections heads=4/4 topk=16 lens=60:0 parts=5 chosen=1 regime=ties");
  replay("op=invert heads=16/2 block=64 topk=16 lens=60:3000,9:300 partial=1 pad_rows=2 slack=3");
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
