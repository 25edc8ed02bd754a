// SPDX-License-Identifier: MIT
#include "fake_runtime.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <utility>

namespace msa::fake {
namespace {

constexpr cudaError_t kFailure = cudaErrorLaunchOutOfResources;  // kFailureName
constexpr std::size_t kMostCalls = 1 << 14;
constexpr std::size_t kDefaultShared = 48 << 10;
constexpr std::size_t kMostShared = 227 << 10;
constexpr int kGpus = 3;
constexpr int kSilentGpu = 2;

// Arrays, as the tests count allocations.
struct State {
  std::array<Call, kMostCalls> calls{};
  std::size_t num_calls = 0;
  long failing = -1;
  int device = 0;
  cudaError_t pending = cudaSuccess;
  struct Limit {
    const void* kernel = nullptr;
    std::size_t bytes = 0;
  };
  std::array<Limit, 1024> limits{};  // of kernels' dynamic shared memory
  std::size_t num_limits = 0;
  std::deque<int> encoder{};
  bool encoder_known = false;
};

State& state() {
  static State all;
  return all;
}

cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess) state().pending = error;
  return error;
}

/// Counts a call and says whether it is the one that fails.
cudaError_t enter(const Call& call) {
  State& s = state();
  if (s.num_calls == kMostCalls) return answer(cudaErrorUnknown);
  s.calls[s.num_calls] = call;
  s.calls[s.num_calls].device = s.device;
  return answer(static_cast<long>(s.num_calls++) == s.failing ? kFailure : cudaSuccess);
}

State::Limit& limit_of(const void* kernel) {
  State& s = state();
  State::Limit* const end = s.limits.data() + s.num_limits;
  State::Limit* const found = std::find_if(
      s.limits.data(), end, [&](const State::Limit& limit) { return limit.kernel == kernel; });
  if (found == end) {
    ++s.num_limits;
    *found = {kernel, kDefaultShared};
  }
  return *found;
}

/// What a driver would say of a launch.
cudaError_t judge(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  constexpr unsigned kMostX = 0x7fffffff, kMostYZ = 65535, kMostThreads = 1024;
  unsigned cluster = 1;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension)
      cluster = config.attrs[i].val.clusterDim.x;
  }
  const bool legal = grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x <= kMostX &&
                     grid.y <= kMostYZ && grid.z <= kMostYZ && block.x * block.y * block.z >= 1 &&
                     block.x * block.y * block.z <= kMostThreads && cluster >= 1 && cluster <= 8 &&
                     grid.x % cluster == 0;
  if (!legal) return cudaErrorInvalidConfiguration;
  return config.dynamicSmemBytes <= limit_of(kernel).bytes ? cudaSuccess : cudaErrorInvalidValue;
}

/// What the driver asks of a tiled map without interleave.
bool takes_map(CUtensorMapDataType type, cuuint32_t rank, const void* address,
               const cuuint64_t* extents, const cuuint64_t* strides, const cuuint32_t* box,
               CUtensorMapSwizzle swizzle) {
  constexpr cuuint64_t kMostExtent = cuuint64_t{1} << 32, kMostStride = cuuint64_t{1} << 40;
  if (address == nullptr || reinterpret_cast<std::uintptr_t>(address) % 16 != 0) return false;
  for (cuuint32_t i = 0; i < rank; ++i) {
    if (extents[i] == 0 || extents[i] > kMostExtent || box[i] == 0 || box[i] > 256) return false;
    if (i > 0 && (strides[i - 1] % 16 != 0 || strides[i - 1] >= kMostStride)) return false;
  }
  const cuuint32_t row = box[0] * (type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2);
  return row % 16 == 0 && (swizzle != CU_TENSOR_MAP_SWIZZLE_128B || row <= 128);
}

CUresult encode(CUtensorMap*, CUtensorMapDataType type, cuuint32_t rank, void* address,
                const cuuint64_t* extents, const cuuint64_t* strides, const cuuint32_t* box,
                const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  State& s = state();
  if (!takes_map(type, rank, address, extents, strides, box, swizzle))
    return CUDA_ERROR_INVALID_VALUE;
  if (s.encoder.empty()) return CUDA_SUCCESS;
  const auto result = static_cast<CUresult>(s.encoder.front());
  s.encoder.pop_front();
  return result;
}

}  // namespace

void reset() {
  state().num_calls = 0;
  state().failing = -1;
  state().pending = cudaSuccess;
}
void fail_at(long n) { state().failing = static_cast<long>(state().num_calls) + n; }
std::span<const Call> calls() { return {state().calls.data(), state().num_calls}; }
long count_of(const char* function) {
  return std::count_if(calls().begin(), calls().end(),
                       [&](const Call& call) { return std::strcmp(call.function, function) == 0; });
}
int current_device() { return state().device; }
void set_current_device(int device) { state().device = device; }
bool error_is_pending() { return state().pending != cudaSuccess; }
void encoder_answers(std::vector<int> results) {
  state().encoder.assign(results.begin(), results.end());
}
bool encoder_is_known() { return state().encoder_known; }

}  // namespace msa::fake

// ---- the functions, by the names that the linker gives them
// ----------------------------------------

using msa::fake::enter;
using msa::fake::state;

extern "C" {

cudaError_t __wrap_cudaGetLastError() { return std::exchange(state().pending, cudaSuccess); }

cudaError_t __wrap_cudaGetDeviceCount(int* count) {
  *count = msa::fake::kGpus;
  return enter({.function = "cudaGetDeviceCount"});
}

cudaError_t __wrap_cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device == msa::fake::kSilentGpu) return msa::fake::answer(cudaErrorDevicesUnavailable);
  *properties = {};
  std::snprintf(properties->name, sizeof(properties->name), "made-up Hopper %d", device);
  properties->major = 9;
  properties->multiProcessorCount = 132;
  properties->l2CacheSize = 50 << 20;
  return enter({.function = "cudaGetDeviceProperties"});
}

cudaError_t __wrap_cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin
               ? static_cast<int>(msa::fake::kMostShared)
               : 0;
  return enter({.function = "cudaDeviceGetAttribute"});
}

cudaError_t __wrap_cudaGetDevice(int* device) {
  *device = state().device;
  return enter({.function = "cudaGetDevice"});
}

cudaError_t __wrap_cudaSetDevice(int device) {
  const cudaError_t error = enter({.function = "cudaSetDevice"});
  if (error == cudaSuccess) state().device = device;
  return error;
}

cudaError_t __wrap_cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  *function = nullptr;
  *result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = enter({.function = "cudaGetDriverEntryPointByVersion"});
  if (error != cudaSuccess) return error;
  *function = reinterpret_cast<void*>(&msa::fake::encode);
  *result = cudaDriverEntryPointSuccess;
  state().encoder_known = true;
  return cudaSuccess;
}

cudaError_t __wrap_cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute,
                                        int value) {
  const auto bytes = static_cast<std::size_t>(value);
  const cudaError_t error =
      enter({.function = "cudaFuncSetAttribute", .kernel = kernel, .shared_bytes = bytes});
  if (error != cudaSuccess) return error;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || bytes > msa::fake::kMostShared)
    return msa::fake::answer(cudaErrorInvalidValue);
  msa::fake::limit_of(kernel).bytes = bytes;
  return cudaSuccess;
}

cudaError_t __wrap_cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                       void**) {
  const cudaError_t error = enter({.function = "cudaLaunchKernelExC",
                                   .stream = config->stream,
                                   .kernel = kernel,
                                   .shared_bytes = config->dynamicSmemBytes});
  return error != cudaSuccess ? error : msa::fake::answer(msa::fake::judge(*config, kernel));
}

cudaError_t __wrap_cudaMemsetAsync(void*, int, std::size_t, cudaStream_t stream) {
  return enter({.function = "cudaMemsetAsync", .stream = stream});
}

cudaError_t __wrap_cudaMemcpyAsync(void* target, const void* source, std::size_t bytes,
                                   cudaMemcpyKind, cudaStream_t stream) {
  const cudaError_t error = enter({.function = "cudaMemcpyAsync", .stream = stream});
  if (error == cudaSuccess) std::memcpy(target, source, bytes);
  return error;
}

cudaError_t __wrap_cudaStreamSynchronize(cudaStream_t stream) {
  return enter({.function = "cudaStreamSynchronize", .stream = stream});
}

}  // extern "C"
