// SPDX-License-Identifier: MIT
// What a run waits for and what it leaves alone: inputs that come late on its stream, other streams
// that stand still, few SMs, the first run of a process, calls back to back in one workspace. Needs
// a GPU: ./test.sh --gpu runs it.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "gpu_case.h"

namespace msa {
namespace {

using gpu::Gate;
using gpu::GpuCase;
using testkit::Operands;

/// Every operation, by every way to serve it.
const std::vector<std::string> kOrderCalls{
    "op=dense heads=16/2 lens=70:300,9:90 lse=1",
    "op=dense heads=16/2 lens=1:3000,8:90 page=64 lse=1",
    "op=dense heads=16/2 lens=1:30000",
    "op=dense heads=16/2 lens=60:300 hostile=nan_v",
    "op=scores heads=4/4 lens=70:700 regime=integers",
    "op=scores heads=4/4 lens=1:700 page=128 regime=integers",
    "op=topk heads=4/4 block=64 topk=4 lens=70:700 chosen=1",
    "op=select heads=4/4 block=64 topk=4 lens=70:700 chosen=1 regime=integers",
    "op=select heads=4/4 block=64 topk=4 lens=2:700 page=64 regime=integers",
    "op=sparse heads=16/2 block=64 topk=4 lens=70:700,9:90 lse=1",
    "op=sparse heads=16/1 topk=16 lens=600:9000 page=128",
    "op=sparse heads=16/2 block=64 topk=4 lens=2:700",
    "op=sparse heads=16/2 block=64 topk=4 lens=70:700 strides=transposed",
    "op=msa heads=16/2 block=64 topk=4 lens=70:700,9:90 regime=integers",
    "op=msa heads=16/2 block=64 topk=4 lens=2:700,1:90 page=64 lse=1 regime=integers",
    "op=msa heads=16/2 block=64 topk=4 lens=40x1:90,1:700 regime=integers",
    "op=sparse heads=16/4 topk=16 lens=24x8:2600 page=128 lse=1",
    "op=msa heads=16/4 topk=16 lens=24x8:2600 page=128 regime=integers",
    "op=merge_states heads=4/4 lens=20:0 parts=3 lse=1",
    "op=merge_selections heads=4/4 topk=4 lens=20:0 parts=3 chosen=1 regime=ties",
    "op=invert heads=4/4 block=64 topk=4 lens=70:700",
    "op=quantize heads=4/4 kv=e4m3/token lens=70:0",
    "op=quantize heads=4/4 kv=q8kv4 dim=32 page=16 lens=20:90,3:33",
    "op=quantize_index heads=4/4 lens=20:90,3:33",
    "op=quantize_index heads=4/4 page=16 lens=20:90,3:33",
};

/// Inputs of the call as addresses in the GPU's memory.
std::vector<Tensor> inputs_of(const Operands& operands) {
  std::vector<Tensor> all;
  Operands copy = operands;
  testkit::for_each_tensor(copy, [&](const Tensor& tensor) { all.push_back(tensor); });
  all.resize(testkit::first_output(copy));
  return all;
}

// The inputs are copied into place by work that the stream still holds back when run is called. A
// run that waited would find the gate opened by its clock; one that read on another stream, or
// before its turn, would meet bytes of 0xee.
TEST(Streams, InputsThatComeLateOnTheSameStream) {
  for (const std::string& line : kOrderCalls) {
    GpuCase call(line);
    testkit::Data true_data(testkit::parse_case(line));
    testkit::Placement source(true_data, call.space());
    const std::vector<Tensor> from = inputs_of(source.prepare());
    const std::vector<Tensor> to = inputs_of(call.operands());
    ASSERT_EQ(from.size(), to.size());
    call.run();  // kernels are loaded
    call.refill();
    for (const Tensor& tensor : to) {
      cudaMemsetAsync(tensor.data, 0xee, gpu::spanned_bytes(tensor), call.stream());
    }
    call.finish();
    {
      Gate gate(call.stream());
      for (std::size_t i = 0; i < to.size(); ++i) {
        EXPECT_EQ(cudaMemcpyAsync(to[i].data, from[i].data, gpu::spanned_bytes(from[i]),
                                  cudaMemcpyDeviceToDevice, call.stream()),
                  cudaSuccess);
      }
      call.run();
      EXPECT_TRUE(gate.holds()) << "run waited: " << line;
      EXPECT_EQ(cudaStreamQuery(call.stream()), cudaErrorNotReady) << line;
      gate.open();
      call.fetch();
    }
    EXPECT_FALSE(call.fault().has_value()) << line;
    EXPECT_EQ(call.difference(), "") << line;
  }
}

// A stream of the caller's is held back, and with it the legacy default stream; the call on its
// own stream runs to its end meanwhile.
TEST(Streams, OthersMayStandStill) {
  cudaStream_t other = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamDefault), cudaSuccess);
  for (const std::string& line : kOrderCalls) {
    GpuCase call(line);
    call.run();
    call.refill();
    call.finish();
    {
      Gate gate(other);
      call.run();
      EXPECT_FALSE(call.fault().has_value()) << line;
      call.fetch();
      EXPECT_TRUE(gate.holds()) << "the call waited for another stream: " << line;
    }
    EXPECT_EQ(call.difference(), "") << line;
    cudaStreamSynchronize(other);
  }
  cudaStreamDestroy(other);
}

// A workspace is the stream's: the next call may overwrite it at once. Tiny calls start early
// (programmatic launches) and so meet the end of the one before.
TEST(Streams, CallsBackToBackInOneWorkspace) {
  for (const char* rest : {"lens=1:700,2:90", "lens=9:700,20:90", "lens=3:3"}) {
    const std::string line = std::string(" heads=16/2 block=64 topk=4 regime=integers ") + rest;
    GpuCase first("op=msa lse=1" + line), second("op=msa lse=1 seed=2" + line),
        third("op=select chosen=1 seed=3" + line), fourth("op=sparse seed=4" + line),
        fifth("op=dense seed=5" + line);
    const std::vector<GpuCase*> calls{&first, &second, &third, &fourth, &fifth};
    std::size_t most = 0;
    for (const GpuCase* call : calls) most = std::max(most, call->plan().workspace_bytes());
    testkit::GuardedWorkspace shared(most, first.space());
    first.finish();
    for (int n = 0; n < 300; ++n) {
      for (GpuCase* call : calls) {
        testkit::run(call->plan(), call->operands(), shared.view(), first.space().stream());
      }
    }
    first.finish();
    EXPECT_TRUE(shared.guards_intact());
    for (GpuCase* call : calls) {
      call->fetch();
      EXPECT_EQ(call->difference(), "") << testkit::to_line(call->data().spec());
    }
  }
}

// The first run of a process, each in one of its own. CUDA loads a kernel at its first launch,
// which waits for all that the GPU is doing; a process that must not wait loads them all at its
// start, and then neither waits nor takes memory of the GPU.
[[noreturn]] void first_run(const std::string& line) {
  setenv("CUDA_MODULE_LOADING", "EAGER", 1);
  GpuCase call(line);
  const auto other = testkit::cuda_memory(0);
  call.finish();
  std::size_t before = 0, after = 0, total = 0;
  bool held = true;
  {
    Gate gate(static_cast<cudaStream_t>(other->stream().handle));
    cudaMemGetInfo(&before, &total);
    call.run();
    held = gate.holds();
    call.finish();
    held = held && gate.holds();
    cudaMemGetInfo(&after, &total);
  }
  call.fetch();
  const std::string wrong = call.difference();
  if (!held) std::fprintf(stderr, "the first run waited for another stream\n");
  if (after != before) std::fprintf(stderr, "the first run took %zu bytes\n", before - after);
  if (!wrong.empty()) std::fprintf(stderr, "%s\n", wrong.c_str());
  std::exit(held && after == before && wrong.empty() && !testing::Test::HasFailure() ? 0 : 1);
}

[[noreturn]] void first_run_in_a_capture(const std::string& line) {
  GpuCase call(line);
  const gpu::Capture graph(call.stream(), [&] { call.run(); });
  graph.launch();
  call.fetch();
  const std::string wrong = call.difference();
  if (!wrong.empty()) std::fprintf(stderr, "%s\n", wrong.c_str());
  std::exit(wrong.empty() && !testing::Test::HasFailure() ? 0 : 1);
}

const std::vector<std::string> kFirstCalls{
    "op=msa heads=16/2 block=64 topk=4 lens=70:700 regime=integers",
    "op=msa heads=16/2 block=64 topk=4 lens=2:700 regime=integers",
    "op=sparse heads=16/1 topk=16 lens=600:9000",
};

TEST(FirstRun, NeitherWaitsNorTakesMemoryWhereKernelsAreLoaded) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const std::string& line : kFirstCalls) {
    EXPECT_EXIT(first_run(line), testing::ExitedWithCode(0), "") << line;
  }
}

TEST(FirstRun, MayBeCaptured) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const std::string& line : kFirstCalls) {
    EXPECT_EXIT(first_run_in_a_capture(line), testing::ExitedWithCode(0), "") << line;
  }
}

/// A stream on a part of the GPU's SMs (a green context), as MPS and MIG give, too.
class Slice {
 public:
  explicit Slice(unsigned sms) {
    CUdevice device{};
    CUdevResource all{}, part{};
    unsigned groups = 1;
    CUdevResourceDesc description{};
    made_ = found("cuDeviceGet", &get_, 2000) && found("cuDeviceGetDevResource", &resource_) &&
            found("cuDevSmResourceSplitByCount", &split_) &&
            found("cuDevResourceGenerateDesc", &describe_) && found("cuGreenCtxCreate", &create_) &&
            found("cuGreenCtxDestroy", &destroy_) &&
            found("cuGreenCtxStreamCreate", &stream_create_, 12050) &&
            get_(&device, 0) == CUDA_SUCCESS &&
            resource_(device, &all, CU_DEV_RESOURCE_TYPE_SM) == CUDA_SUCCESS &&
            split_(&part, &groups, &all, nullptr, 0, sms) == CUDA_SUCCESS && groups == 1 &&
            describe_(&description, &part, 1) == CUDA_SUCCESS &&
            create_(&context_, description, device, CU_GREEN_CTX_DEFAULT_STREAM) == CUDA_SUCCESS &&
            stream_create_(&stream_, context_, CU_STREAM_NON_BLOCKING, 0) == CUDA_SUCCESS;
    sms_ = part.sm.smCount;
  }
  Slice(const Slice&) = delete;
  Slice& operator=(const Slice&) = delete;
  ~Slice() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
    if (context_ != nullptr) destroy_(context_);
  }
  bool made() const { return made_; }
  unsigned sms() const { return sms_; }
  cudaStream_t stream() const { return stream_; }

 private:
  template <class Function>
  static bool found(const char* name, Function* function, unsigned version = 12040) {
    void* at = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion(name, &at, version, cudaEnableDefault, &result);
    *function = reinterpret_cast<Function>(at);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess;
  }

  bool made_ = false;
  unsigned sms_ = 0;
  CUgreenCtx context_ = nullptr;
  CUstream stream_ = nullptr;
  decltype(&cuDeviceGet) get_ = nullptr;
  decltype(&cuDeviceGetDevResource) resource_ = nullptr;
  decltype(&cuDevSmResourceSplitByCount) split_ = nullptr;
  decltype(&cuDevResourceGenerateDesc) describe_ = nullptr;
  decltype(&cuGreenCtxCreate) create_ = nullptr;
  decltype(&cuGreenCtxDestroy) destroy_ = nullptr;
  decltype(&cuGreenCtxStreamCreate) stream_create_ = nullptr;
};

// Clusters of eight CTAs, grids meant for all SMs and kernels that wait for each other's tiles,
// where only some SMs are there.
TEST(Slices, EightSmsServeWhatWasPlannedForAll) {
  GpuCase whole(kOrderCalls.front());  // a context
  for (const unsigned sms : {8U, 16U}) {
    const Slice slice(sms);
    if (!slice.made()) GTEST_SKIP() << "not run: the driver gives no part of the SMs";
    EXPECT_LE(slice.sms(), 2 * sms);
    for (const std::string& line : kOrderCalls) {
      GpuCase call(line);
      call.run_on({slice.stream()});
      EXPECT_EQ(cudaStreamSynchronize(slice.stream()), cudaSuccess) << line;
      call.fetch();
      EXPECT_EQ(call.difference(), "") << line << " on " << slice.sms() << " SMs";
    }
  }
}

}  // namespace
}  // namespace msa
