// SPDX-License-Identifier: MIT
// Calls of the CUDA runtime, checked, and what bounds a grid. Without the standard library's
// containers: every .cu file includes this, is read twice, and takes a second longer with them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace msa::cuda {

inline constexpr std::int64_t kMaxGridYZ = 65535;  // CTAs along y or z

/// Throws Error(ErrorCode::Device) with the call, the place and the driver's words.
[[noreturn]] void throw_cuda_error(cudaError_t error, const char* call, const char* file, int line);

inline void check_cuda(cudaError_t error, const char* call, const char* file, int line) {
  if (error != cudaSuccess) throw_cuda_error(error, call, file, line);
}

/// Whether a launch on the current device may start before the one in front of it ends.
bool launches_overlap();

#define MSA_CUDA_CHECK(call) ::msa::cuda::check_cuda((call), #call, __FILE__, __LINE__)

}  // namespace msa::cuda
