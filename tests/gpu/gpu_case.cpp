// SPDX-License-Identifier: MIT
#include "gpu_case.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "testkit/compare.h"
#include "testkit/requests.h"

namespace msa::gpu {

Problem on_gpu(Problem problem, const testkit::MemorySpace& space) {
  problem.device = space.device();
  problem.options.backend = "cuda";
  return problem;
}

namespace {

Plan plan_of(const testkit::Data& data, const testkit::MemorySpace& space,
             const std::function<void(Problem&)>& change) {
  Problem problem = on_gpu(data.problem(), space);
  if (change) change(problem);
  return make_plan(problem);
}

}  // namespace

GpuCase::GpuCase(const std::string& line, int device, const std::function<void(Problem&)>& change)
    : space_(testkit::cuda_memory(device)),
      data_(testkit::parse_case(line)),
      plan_(plan_of(data_, *space_, change)),
      workspace_(plan_.workspace_bytes(), *space_),
      placement_(data_, *space_),
      operands_(placement_.prepare()) {
  space_->synchronize();
}

std::string GpuCase::difference() const {
  Problem host = plan_.problem();
  host.device = {};
  return testkit::compare(host, data_.operands(),
                          {.exact_scores = testkit::has_exact_scores(data_.spec())})
      .what;
}

std::vector<std::byte> bits(const Tensor& tensor, std::int64_t begin, std::int64_t count) {
  std::vector<std::byte> bytes;
  const auto item = static_cast<std::size_t>(size_in_bytes(tensor.dtype, 1));
  const std::int64_t heads = tensor.rank > 1 ? tensor.shape[1] : 1;
  const std::int64_t width = tensor.rank > 2 ? tensor.shape[2] : 1;
  for (std::int64_t i = begin; i < begin + count; ++i) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t d = 0; d < width; ++d) {
        const std::byte* element = testkit::address(tensor, i, h, d);
        bytes.insert(bytes.end(), element, element + item);
      }
    }
  }
  return bytes;
}

std::vector<std::byte> bits(const Tensor& tensor) { return bits(tensor, 0, tensor.shape[0]); }

std::vector<std::byte> output_bits(const testkit::Operands& operands) {
  std::vector<std::byte> all;
  testkit::Operands copy = operands;
  const std::size_t first = testkit::first_output(copy);
  std::size_t index = 0;
  testkit::for_each_tensor(copy, [&](const Tensor& tensor) {
    if (index++ < first) return;
    const std::vector<std::byte> some = bits(tensor);
    all.insert(all.end(), some.begin(), some.end());
  });
  return all;
}

std::size_t spanned_bytes(const Tensor& tensor) {
  std::int64_t last = 0;
  for (int i = 0; i < tensor.rank; ++i) {
    const auto n = static_cast<std::size_t>(i);
    if (tensor.shape[n] == 0) return 0;
    last += (tensor.shape[n] - 1) * tensor.stride[n];
  }
  return static_cast<std::size_t>(size_in_bytes(tensor.dtype, last + 1));
}

Gate::Gate(CudaStream stream) : until_(std::chrono::steady_clock::now() + std::chrono::seconds(5)) {
  EXPECT_EQ(cudaLaunchHostFunc(stream, &Gate::wait, this), cudaSuccess);
}

Gate::~Gate() {
  open();
  while (!left_) std::this_thread::sleep_for(std::chrono::microseconds(50));
}

void Gate::wait(void* gate) {
  auto& self = *static_cast<Gate*>(gate);
  while (!self.open_) {
    if (std::chrono::steady_clock::now() > self.until_) {
      self.late_ = true;
      break;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  self.left_ = true;
}

Capture::Capture(CudaStream stream, const std::function<void()>& run) : stream_(stream) {
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  run();
  EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  EXPECT_EQ(cudaGraphInstantiate(&exec_, graph, 0), cudaSuccess);
  cudaGraphDestroy(graph);
}

Capture::~Capture() { cudaGraphExecDestroy(exec_); }

void Capture::launch() const { EXPECT_EQ(cudaGraphLaunch(exec_, stream_), cudaSuccess); }

}  // namespace msa::gpu
