// SPDX-License-Identifier: MIT
// What goes wrong off the fast path: threads that share plans, tensors without elements, refusals,
// NaN in one request, plans far larger than their calls. Needs a GPU: ./test.sh --gpu runs it.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "gpu_case.h"
#include "testkit/compare.h"
#include "testkit/number.h"

namespace msa {
namespace {

using gpu::Capture;
using gpu::GpuCase;
using gpu::on_gpu;
using testkit::Data;
using testkit::Operands;
using testkit::Placement;

TEST(Threads, LaunchesOfOneKernelWithOtherSharedMemory) {
  // Selections of 4 and of 64 blocks launch one kernel with 50 and with 80 KB.
  GpuCase few("op=select heads=4/4 lens=1:300000 topk=4 page=128");
  GpuCase many("op=select heads=4/4 lens=1:300000 topk=64 page=128");
  std::string failures[2];
  const auto repeat = [](GpuCase& call, std::string& failure) {
    try {
      for (int n = 0; n < 5000; ++n) call.run();
    } catch (const Error& error) {
      failure = error.what();
    }
  };
  std::thread first(repeat, std::ref(few), std::ref(failures[0]));
  std::thread second(repeat, std::ref(many), std::ref(failures[1]));
  first.join();
  second.join();
  few.finish();
  many.finish();
  EXPECT_EQ(failures[0], "");
  EXPECT_EQ(failures[1], "");
}

TEST(Threads, AGraphSurvivesLaunchesWithLessSharedMemory) {
  GpuCase many("op=select heads=4/4 lens=1:300000 topk=64 regime=integers");
  GpuCase few("op=select heads=4/4 lens=1:300000 topk=4 regime=integers");
  const Capture graph(many.stream(), [&] { many.run(); });
  few.run();
  few.finish();
  graph.launch();
  many.fetch();
  EXPECT_EQ(many.difference(), "");
}

TEST(Empty, TensorsWithoutElementsNeedNoAddress) {
  // What a framework hands over for a tensor of no rows. Few planned tokens are decode, many
  // prefill.
  for (const std::string op : {"dense", "sparse", "msa", "select", "scores"}) {
    for (const char* lens :
         {"lens=none", "lens=0:0", "lens=0:0 slack=5", "lens=5:0", "lens=70:0",
          "lens=none slack=70", "lens=3:0,70:0", "lens=none pad_rows=9", "lens=none pad_rows=70"}) {
      const std::string line = "op=" + op + " heads=16/2 block=64 topk=4 " + lens;
      GpuCase call(line);
      testkit::for_each_tensor(call.operands(), [](Tensor& tensor) {
        for (int i = 0; i < tensor.rank; ++i) {
          if (tensor.shape[static_cast<std::size_t>(i)] == 0) tensor.data = nullptr;
        }
      });
      EXPECT_NO_THROW(call.run()) << line;
      call.fetch();
      EXPECT_FALSE(call.fault().has_value()) << line;
      EXPECT_EQ(call.difference(), "") << line;
    }
  }
}

TEST(Refusals, TouchNoOutput) {
  for (const char* line : {"op=scores heads=4/4 lens=1:500 strides=padded",
                           "op=scores heads=4/4 lens=90:500 strides=padded",
                           "op=msa heads=16/2 lens=1:500 topk=4 strides=padded",
                           "op=sparse heads=16/2 lens=90:500 topk=4 strides=padded",
                           "op=dense heads=16/2 lens=1:500 strides=padded",
                           "op=dense heads=16/2 lens=90:500 strides=padded",
                           "op=select heads=4/4 lens=1:500 topk=4 strides=padded"}) {
    GpuCase call(line);
    bool refused = false;
    try {
      call.run();
    } catch (const Error& error) {
      refused = true;
      EXPECT_EQ(error.code(), ErrorCode::InvalidArgument) << error.what();
    }
    call.fetch();
    EXPECT_TRUE(refused) << line;
    Operands outputs = call.data().operands();
    const std::size_t first = testkit::first_output(outputs);
    std::size_t at = 0;
    testkit::for_each_tensor(outputs, [&](Tensor& tensor) {
      if (at++ < first) return;
      std::byte sentinel{};
      std::memcpy(&sentinel, tensor.data, 1);
      EXPECT_EQ(sentinel, std::byte{testkit::Buffer::kSentinel}) << line;
    });
  }
}

/// Writes NaN into the values of request 0 in host memory.
void poison_first_request(const Data& data) {
  const Tensor& v = data.operands().v;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  testkit::store(&nan, 1, v.dtype, static_cast<std::byte*>(v.data));
}

TEST(BatchInvariance, ANanInOneRequestChangesNoBitsOfAnother) {
  for (const char* op : {"op=dense", "op=sparse topk=8 block=64"}) {
    const std::string line =
        std::string(op) + " heads=16/2 batch_invariant=1 lens=40:20000,40:20000 lse=1";
    std::vector<std::byte> second[2];
    for (int poisoned = 0; poisoned < 2; ++poisoned) {
      const auto space = testkit::cuda_memory(0);
      Data data(testkit::parse_case(line));
      if (poisoned == 1) poison_first_request(data);
      const Plan plan = make_plan(on_gpu(data.problem(), *space));
      testkit::GuardedWorkspace workspace(plan.workspace_bytes(), *space);
      Placement placement(data, *space);
      const Operands operands = placement.prepare();
      testkit::run(plan, operands, workspace.view(), space->stream());
      placement.fetch();
      second[poisoned] = gpu::bits(data.operands().out, 40, 40);
    }
    EXPECT_TRUE(second[0] == second[1]) << line;
  }
}

TEST(Plans, LargerThanTheCall) {
  // A plan for a million tokens serves a few: its launches are the call's, not the plan's.
  const auto space = testkit::cuda_memory(0);
  Data data(
      testkit::parse_case("op=msa heads=16/2 block=64 topk=4 lens=200:900,9:300 lse=1 "
                          "regime=integers"));
  Problem problem = on_gpu(data.problem(), *space);
  problem.bounds.total_q = 1 << 20;
  problem.bounds.max_seqlen_q = 1 << 20;
  problem.bounds.max_seqlen_k = 1 << 20;
  problem.bounds.batch = 8;
  const Plan plan = make_plan(problem);
  testkit::GuardedWorkspace workspace(plan.workspace_bytes(), *space);
  Placement placement(data, *space);
  const Operands operands = placement.prepare();
  testkit::run(plan, operands, workspace.view(), space->stream());
  placement.fetch();
  EXPECT_EQ(testkit::compare(data.problem(), data.operands(), {.exact_scores = true}).what, "");
}

}  // namespace
}  // namespace msa
