// SPDX-License-Identifier: MIT
// The device of the tensors decides, and what a device that fails says. Two GPUs where there are
// two. Needs a GPU: ./test.sh --gpu runs it.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "gpu_case.h"

namespace msa {
namespace {

using gpu::GpuCase;

const std::vector<std::string> kCalls{
    "op=dense heads=16/2 lens=70:300,9:90 lse=1",
    "op=dense heads=16/2 lens=1:30000",
    "op=scores heads=4/4 lens=70:700 regime=integers",
    "op=topk heads=4/4 block=64 topk=4 lens=70:700 chosen=1",
    "op=select heads=4/4 block=64 topk=64 lens=2:70000 regime=integers",
    "op=sparse heads=16/1 topk=16 lens=600:9000 page=128",
    "op=sparse heads=16/2 block=64 topk=4 lens=70:700 strides=transposed",
    "op=msa heads=16/2 block=64 topk=4 lens=70:700,9:90 regime=integers",
    "op=msa heads=16/2 block=64 topk=4 lens=2:700,1:90 page=64 lse=1 regime=integers",
    "op=merge_states heads=4/4 lens=20:0 parts=3 lse=1",
    "op=merge_selections heads=4/4 topk=4 lens=20:0 parts=3 chosen=1 regime=ties",
    "op=invert heads=4/4 block=64 topk=4 lens=70:700",
};

int num_gpus() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

int current() {
  int device = -1;
  cudaGetDevice(&device);
  return device;
}

#define NEEDS_TWO_GPUS() \
  if (num_gpus() < 2) GTEST_SKIP() << "not run: one GPU, two are needed"

TEST(Devices, TheTensorsDecide) {
  NEEDS_TWO_GPUS();
  for (const std::string& line : kCalls) {
    for (const int device : {1, 0}) {
      GpuCase call(line, device);
      cudaSetDevice(1 - device);
      call.run();
      EXPECT_EQ(current(), 1 - device) << line;
      EXPECT_FALSE(call.fault().has_value()) << line;
      EXPECT_EQ(current(), 1 - device) << line;
      cudaSetDevice(device);
      call.fetch();
      EXPECT_EQ(call.difference(), "") << line << " on GPU " << device;
    }
  }
}

TEST(Devices, TakeTurnsInOneThreadAndRunInTwo) {
  NEEDS_TWO_GPUS();
  for (const std::string& line : kCalls) {
    GpuCase zero(line, 0), one(line, 1);
    for (int n = 0; n < 20; ++n) {
      zero.run();
      one.run();
    }
    std::vector<std::thread> threads;
    for (GpuCase* call : {&zero, &one}) {
      threads.emplace_back([call] {
        for (int n = 0; n < 50; ++n) call->run();
        call->finish();
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (GpuCase* call : {&zero, &one}) {
      cudaSetDevice(call->space().device().index);
      call->fetch();
      EXPECT_EQ(call->difference(), "") << line;
    }
    EXPECT_TRUE(gpu::output_bits(zero.host()) == gpu::output_bits(one.host())) << line;
  }
}

// A capture that somebody else broke: launches into it fail, as real ones do, and the next call is
// served.
TEST(Devices, LaunchesThatFailAreTypedErrors) {
  for (const std::string& line : kCalls) {
    GpuCase call(line);
    call.run();
    call.finish();
    ASSERT_EQ(cudaStreamBeginCapture(call.stream(), cudaStreamCaptureModeThreadLocal), cudaSuccess);
    // check waits, which a capture forbids; it breaks.
    EXPECT_THROW(static_cast<void>(call.fault()), Error) << line;
    try {
      call.run();
      ADD_FAILURE() << "launched into a broken capture: " << line;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::Device) << error.what();
      EXPECT_NE(std::string(error.what()).find("cudaErrorStreamCapture"), std::string::npos)
          << error.what();
    }
    cudaGraph_t graph = nullptr;
    EXPECT_NE(cudaStreamEndCapture(call.stream(), &graph), cudaSuccess);
    EXPECT_EQ(cudaGetLastError() == cudaSuccess, false);
    EXPECT_EQ(graph, nullptr);
    call.refill();
    EXPECT_NO_THROW(call.run()) << line;
    call.fetch();
    EXPECT_EQ(call.difference(), "") << line;
  }
}

/// A call whose q lies where the GPU has no memory.
[[noreturn]] void run_into_nowhere() {
  GpuCase call("op=dense heads=16/2 lens=70:300");
  call.operands().q.data = reinterpret_cast<void*>(std::uintptr_t{1} << 20);
  int failures = 0;
  const auto expect_device_error = [&](const char* what, const auto& act) {
    try {
      act();
      std::fprintf(stderr, "%s: no error\n", what);
      ++failures;
    } catch (const Error& error) {
      if (error.code() == ErrorCode::Device) return;
      std::fprintf(stderr, "%s: %s\n", what, error.what());
      ++failures;
    }
  };
  try {
    call.run();
  } catch (const Error&) {  // the driver may know at once
  }
  expect_device_error("check", [&] { static_cast<void>(call.fault()); });
  expect_device_error("run", [&] { call.run(); });
  try {
    static_cast<void>(supports(call.plan().problem()));
  } catch (...) {
    std::fprintf(stderr, "supports threw\n");
    ++failures;
  }
  std::_Exit(failures);
}

TEST(Devices, AGpuInErrorSaysSo) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(run_into_nowhere(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace msa
