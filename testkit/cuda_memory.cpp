// SPDX-License-Identifier: MIT
#include "testkit/cuda_memory.h"

#ifdef MSA_WITH_CUDA

#include <cuda_runtime_api.h>

#include <string>

#include "msa/error.h"

namespace msa::testkit {
namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw Error(ErrorCode::Device, "", std::string(what) + ": " + cudaGetErrorString(error));
}

class CudaMemory final : public MemorySpace {
 public:
  explicit CudaMemory(int device) : device_(device) {
    check(cudaSetDevice(device), "cudaSetDevice");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;
  ~CudaMemory() override { static_cast<void>(cudaStreamDestroy(stream_)); }

  Device device() const override { return {DeviceType::Cuda, device_}; }
  Stream stream() const override { return {stream_}; }

  void* allocate(std::size_t bytes) override {
    void* data = nullptr;
    check(cudaMalloc(&data, bytes == 0 ? 1 : bytes), "cudaMalloc");
    return data;
  }
  void release(void* data) noexcept override { static_cast<void>(cudaFree(data)); }
  void copy_in(void* target, const void* host, std::size_t bytes) override {
    check(cudaMemcpyAsync(target, host, bytes, cudaMemcpyHostToDevice, stream_), "copy in");
    synchronize();
  }
  void copy_out(void* host, const void* source, std::size_t bytes) override {
    check(cudaMemcpyAsync(host, source, bytes, cudaMemcpyDeviceToHost, stream_), "copy out");
    synchronize();
  }
  void fill(void* target, int value, std::size_t bytes) override {
    check(cudaMemsetAsync(target, value, bytes, stream_), "fill");
  }
  void synchronize() override { check(cudaStreamSynchronize(stream_), "synchronize"); }

 private:
  int device_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace

std::unique_ptr<MemorySpace> cuda_memory(int device) {
  return std::make_unique<CudaMemory>(device);
}

}  // namespace msa::testkit

#else

namespace msa::testkit {

std::unique_ptr<MemorySpace> cuda_memory(int) { return nullptr; }

}  // namespace msa::testkit

#endif
