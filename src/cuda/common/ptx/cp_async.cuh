// SPDX-License-Identifier: MIT
// Copies from global to shared memory that do not wait, by the calling thread (cp.async, PTX
// ISA 9.7.9.25), and groups of them to wait for.
#pragma once

#include <cstdint>

#include "cuda/common/ptx/shared.cuh"

namespace msa::cuda::common::ptx {

/// 16 bytes past L1; `bytes` of them are read, the rest is zero.
__device__ __forceinline__ void cp_async_16(std::uint32_t smem, const void* gmem, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem), "l"(gmem), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_16(void* smem, const void* gmem, int bytes) {
  cp_async_16(cvta_to_shared(smem), gmem, bytes);
}

/// 4 or 8 bytes, or zeros where `bytes` is.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* smem, const void* gmem, int bytes) {
  static_assert(kBytes == 4 || kBytes == 8, "16 bytes pass L1");
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(cvta_to_shared(smem)),
               "l"(gmem), "n"(kBytes), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace msa::cuda::common::ptx
