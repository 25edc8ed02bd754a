// SPDX-License-Identifier: MIT
// The calls of the CUDA runtime that the library and the tests' memory make, on one card whose
// memory is the host's. Streams have done everything when a call returns.
//   MSA_EMULATED_CAPABILITY  80, 86, 89, 90, 100, 120: compute capability times 10 (80)
//   MSA_EMULATED_SMS         multiprocessors, which plans deal work to (4)
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr std::size_t kAlignment = 256;

int setting(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

int capability() { return setting("MSA_EMULATED_CAPABILITY", 80); }

/// Shared memory that a CTA may ask for (CUDA C++ Programming Guide, technical specifications).
int shared_kib() {
  if (capability() == 80) return 163;
  return capability() == 90 || capability() == 100 ? 227 : 99;
}

/// In place of cuTensorMapEncodeTiled.
CUresult make_no_map(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                     const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                     CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated GPU of capability %d.%d",
                capability() / 10, capability() % 10);
  properties->major = capability() / 10;
  properties->minor = capability() % 10;
  properties->multiProcessorCount = setting("MSA_EMULATED_SMS", 4);
  properties->l2CacheSize = 40 << 20;
  properties->totalGlobalMem = std::size_t{8} << 30;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  // Clocks and widths only say how long things should take.
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? shared_kib() << 10 : 1000;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorOfEmulation"; }
const char* cudaGetErrorString(cudaError_t) { return "the emulated GPU refused a call"; }

/// Memory that nobody wrote holds no zeros.
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  const std::size_t rounded = (bytes / kAlignment + 1) * kAlignment;
  *memory = std::aligned_alloc(kAlignment, rounded);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xee, rounded);
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  if (bytes > 0) std::memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

/// Tensor maps are Hopper's: the driver makes them, and nobody here reads one (sm90.cpp).
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  const bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(&make_no_map) : nullptr;
  *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

}  // extern "C"
