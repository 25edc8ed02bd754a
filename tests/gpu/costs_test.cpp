// SPDX-License-Identifier: MIT
// What must not cost much: a NaN, ragged keys, rows of padding, many short requests; and what must
// pay: keys outermost. Marks are far from what was measured, so that only a cliff fails. Needs a
// GPU that does nothing else: ./test.sh --gpu runs it.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "gpu_case.h"
#include "testkit/number.h"
#include "testkit/requests.h"

namespace msa {
namespace {

using gpu::GpuCase;

/// Microseconds of a run in a graph of them: launches cost nothing there.
double microseconds(GpuCase& call, int runs = 20) {
  call.run();
  const gpu::Capture graph(call.stream(), [&] {
    for (int n = 0; n < runs; ++n) call.run();
  });
  cudaEvent_t begin = nullptr, end = nullptr;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  double best = std::numeric_limits<double>::infinity();
  for (int n = 0; n < 8; ++n) {
    cudaEventRecord(begin, call.stream());
    graph.launch();
    cudaEventRecord(end, call.stream());
    call.finish();
    float milliseconds = 0;
    EXPECT_EQ(cudaEventElapsedTime(&milliseconds, begin, end), cudaSuccess);
    if (n >= 2) best = std::min(best, 1e3 * milliseconds / runs);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best;
}

void report(const char* what, double with, double without) {
  std::printf("%s: %.1f us, without %.1f us, %.2f times\n", what, with, without, with / without);
}

/// NaN in every head's first key row.
void poison_sink(const GpuCase& call) {
  const Tensor& v = call.host().v;
  const std::vector<float> nan(static_cast<std::size_t>(v.shape[v.rank - 1]),
                               std::numeric_limits<float>::quiet_NaN());
  for (std::int64_t head = 0; head < v.shape[1]; ++head) {
    testkit::store(nan.data(), static_cast<std::int64_t>(nan.size()), v.dtype,
                   testkit::address(v, 0, head));
  }
}

// A key that all rows see: each is computed again. On a scalar path that took a thousand times as
// long.
TEST(Costs, ANanThatEveryRowSees) {
  for (const char* line : {"op=sparse heads=64/4 topk=16 lens=2048:16384 regime=drift",
                           "op=dense heads=64/4 lens=1024:8192",
                           "op=sparse heads=64/4 topk=16 kv=e4m3/head lens=2048:16384 regime=drift",
                           "op=dense heads=64/4 kv=e4m3/token lens=1024:8192"}) {
    GpuCase call(line);
    const double finite = microseconds(call, 5);
    poison_sink(call);
    call.refill();
    const double poisoned = microseconds(call, 5);
    report(line, poisoned, finite);
    EXPECT_LT(poisoned, 10 * finite) << line;
  }
}

TEST(Costs, RaggedKeysOfDecode) {
  GpuCase ragged("op=msa heads=16/4 lens=1:65536");
  GpuCase paged("op=msa heads=16/4 lens=1:65536 page=128");
  const double of_ragged = microseconds(ragged), of_paged = microseconds(paged);
  report("ragged keys", of_ragged, of_paged);
  EXPECT_LT(of_ragged, 1.1 * of_paged);  // a rehearsal behind the scores costs 3 to 4 us of 18
}

// Graphs are captured for more requests than come: the others are empty, and their rows padding.
TEST(Costs, RowsOfPaddingInDecode) {
  const auto engine = [](Problem& problem) { problem.bounds.total_q = 512; };
  GpuCase padded("op=msa heads=64/4 lens=12x1:4000,500x0:0 page=128 pad_rows=500", 0, engine);
  GpuCase plain("op=msa heads=64/4 lens=12x1:4000,500x0:0 page=128", 0, engine);
  const double with = microseconds(padded), without = microseconds(plain);
  report("500 rows of padding", with, without);
  EXPECT_LT(with - without, 10);  // the last request's CTAs alone took 20 to 40
}

TEST(Costs, ManyShortRequestsOfDecode) {
  GpuCase many("op=select heads=4/4 lens=1024x1:256 page=128");
  GpuCase few("op=select heads=4/4 lens=32x1:8192 page=128");
  const double of_many = microseconds(many), of_few = microseconds(few);
  report("1024 requests instead of 32", of_many, of_few);
  EXPECT_LT(of_many - of_few, 100);
}

// Bounds of a serving engine: many requests, each perhaps long. Lists that share little pay with
// keys outermost, which batch_invariant forbids.
TEST(Costs, KeysOutermostServesRandomListsOfLargeBatches) {
  const auto engine = [](Problem& problem) {
    problem.bounds.batch = 64;
    problem.bounds.max_seqlen_k = 131072;
    problem.options.isa = "sm90";  // which alone has kernels with keys outermost
  };
  const std::string line = "op=sparse heads=64/4 topk=16 lens=4x1024:16384";
  GpuCase call(line, 0, engine), lists(line + " batch_invariant=1", 0, engine);
  EXPECT_NE(call.plan().to_string().find("attend_keys_outermost beyond"), std::string::npos);
  EXPECT_NE(lists.plan().to_string().find("attend_keys_outermost no"), std::string::npos);
  call.run();
  call.fetch();
  EXPECT_EQ(call.difference(), "");
  const double outermost = microseconds(call, 3), of_lists = microseconds(lists, 3);
  report("keys outermost", outermost, of_lists);
  EXPECT_LT(outermost, of_lists);
}

}  // namespace
}  // namespace msa
