// SPDX-License-Identifier: MIT
// What the GPU tests share: a case on a GPU, the bits that it wrote, a stream held back, a captured
// graph. Names CUDA's types without its headers.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "testkit/cuda_memory.h"
#include "testkit/generate.h"
#include "testkit/verify.h"

struct CUstream_st;
struct CUgraphExec_st;

namespace msa::gpu {

using CudaStream = CUstream_st*;

/// The problem on that GPU, for no other backend.
Problem on_gpu(Problem problem, const testkit::MemorySpace& space);

/// A case on a GPU with a stream, a plan and a workspace of its own.
class GpuCase {
 public:
  explicit GpuCase(const std::string& line, int device = 0,
                   const std::function<void(Problem&)>& change = nullptr);

  void run() { run_on(space_->stream()); }
  void run_on(Stream stream) { testkit::run(plan_, operands_, workspace_.view(), stream); }
  /// Inputs as they lie in host memory, and fresh sentinels in the outputs.
  void refill() { operands_ = placement_.prepare(); }
  void fetch() { placement_.fetch(); }
  void finish() { space_->synchronize(); }
  std::optional<Fault> fault() const { return check(plan_, workspace_.view(), space_->stream()); }
  /// What is wrong with the outputs that were fetched, or "".
  std::string difference() const;

  testkit::MemorySpace& space() { return *space_; }
  CudaStream stream() const { return static_cast<CudaStream>(space_->stream().handle); }
  testkit::Data& data() { return data_; }
  /// The tensors in host memory, outputs as they were fetched.
  const testkit::Operands& host() const { return data_.operands(); }
  const Plan& plan() const { return plan_; }
  /// The tensors in the GPU's memory.
  testkit::Operands& operands() { return operands_; }
  const testkit::GuardedWorkspace& guarded() const { return workspace_; }
  Workspace workspace() const { return workspace_.view(); }

 private:
  std::unique_ptr<testkit::MemorySpace> space_;
  testkit::Data data_;
  Plan plan_;
  testkit::GuardedWorkspace workspace_;
  testkit::Placement placement_;
  testkit::Operands operands_;
};

/// Rows [begin, begin + count) of a tensor in host memory, element by element.
std::vector<std::byte> bits(const Tensor& tensor, std::int64_t begin, std::int64_t count);
std::vector<std::byte> bits(const Tensor& tensor);
/// Of all outputs.
std::vector<std::byte> output_bits(const testkit::Operands& operands);

/// Bytes from a tensor's first element to behind its last.
std::size_t spanned_bytes(const Tensor& tensor);

/// Holds a stream back until it is opened. Opens by itself after some seconds, and then says so: a
/// call that waits for the stream fails its test instead of hanging.
class Gate {
 public:
  explicit Gate(CudaStream stream);
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  ~Gate();
  void open() { open_ = true; }
  /// Whether nobody waited for it so far.
  bool holds() const { return !late_; }

 private:
  static void wait(void* gate);

  std::chrono::steady_clock::time_point until_;
  std::atomic<bool> open_{false}, late_{false}, left_{false};
};

/// Launches of `run`, captured.
class Capture {
 public:
  Capture(CudaStream stream, const std::function<void()>& run);
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  ~Capture();
  void launch() const;

 private:
  CudaStream stream_;
  CUgraphExec_st* exec_ = nullptr;
};

}  // namespace msa::gpu
