// SPDX-License-Identifier: MIT
#include "cuda/device.h"

#include "msa/error.h"

namespace msa::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  MSA_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

/// Dense bf16 products of Hopper's tensor cores; the H20, sold with fewer, does a quarter of them.
/// Of other cards nothing asks for them.
double flops_of(const cudaDeviceProp& properties, int clock_khz) {
  if (properties.major != 9) return 0;
  const std::string name = properties.name;
  const double a_clock =
      name.find("H20") != std::string::npos && name.find("H200") == std::string::npos ? 1024 : 4096;
  return a_clock * properties.multiProcessorCount * 1e3 * clock_khz;
}

GpuInfo read_gpu(int device) {
  cudaDeviceProp properties{};
  MSA_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  return {.name = properties.name,
          .major = properties.major,
          .minor = properties.minor,
          .multiprocessors = properties.multiProcessorCount,
          .shared_memory =
              static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)),
          .l2_bytes = static_cast<std::size_t>(properties.l2CacheSize),
          .bf16_flops = flops_of(properties, attribute(cudaDevAttrClockRate, device)),
          // Two transfers a clock.
          .bytes_per_s = 2e3 * attribute(cudaDevAttrMemoryClockRate, device) *
                         attribute(cudaDevAttrGlobalMemoryBusWidth, device) / 8};
}

Machine find_gpus() {
  Machine found;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();  // the error is answered here: later checks must not meet it
    // The runtime's own words for this one ("driver version is insufficient") name no driver.
    found.reason = error == cudaErrorInsufficientDriver
                       ? "no NVIDIA driver, or one older than CUDA 13.0 needs"
                       : std::string("no usable GPU: ") + cudaGetErrorString(error);
    return found;
  }
  return machine_of(count, read_gpu);
}

}  // namespace

Machine machine_of(int count, const std::function<GpuInfo(int device)>& read) {
  Machine found;
  if (count == 0) found.reason = "no GPU";
  for (int device = 0; device < count; ++device) {
    try {
      found.gpus.push_back(read(device));
    } catch (const Error& error) {
      found.gpus.push_back({.name = "GPU " + std::to_string(device), .fault = error.what()});
    }
  }
  return found;
}

const Machine& machine() {
  static const Machine found = find_gpus();
  return found;
}

void throw_cuda_error(cudaError_t error, const char* call, const char* file, int line) {
  cudaGetLastError();
  throw Error(ErrorCode::Device, "",
              std::string(call) + " failed: " + cudaGetErrorName(error) + ", " +
                  cudaGetErrorString(error) + " (" + file + ":" + std::to_string(line) + ")");
}

bool launches_overlap() {
  int device = 0;
  MSA_CUDA_CHECK(cudaGetDevice(&device));
  return machine().gpus.at(static_cast<std::size_t>(device)).major >= 9;
}

DeviceGuard::DeviceGuard(int device) {
  MSA_CUDA_CHECK(cudaGetDevice(&former_));
  if (former_ == device) return;
  MSA_CUDA_CHECK(cudaSetDevice(device));
  changed_ = true;
}

DeviceGuard::~DeviceGuard() {
  if (changed_) static_cast<void>(cudaSetDevice(former_));
}

void* driver_entry_point(const char* name, unsigned version) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  MSA_CUDA_CHECK(
      cudaGetDriverEntryPointByVersion(name, &function, version, cudaEnableDefault, &result));
  if (result != cudaDriverEntryPointSuccess || function == nullptr) {
    throw Error(ErrorCode::Device, "", std::string("the driver has no ") + name);
  }
  return function;
}

}  // namespace msa::cuda
