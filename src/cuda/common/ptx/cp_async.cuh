// SPDX-License-Identifier: MIT
// Copies from global to shared memory that do not wait, by the calling thread (cp.async, PTX
// ISA 9.7.9.25), groups of them to wait for, and loads that nobody reads.
#pragma once

#include <cstdint>

#include "cuda/common/ptx/barrier.cuh"
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

/// Arrives once the cp_async of the calling thread up to here are done: one of the arrivals that
/// the barrier was made for.
__device__ __forceinline__ void cp_async_mbarrier_arrive_noinc(Mbarrier* bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(cvta_to_shared(bar))
               : "memory");
}

/// Loads 4 bytes that nobody needs yet: their line is in L1 afterwards. Does not wait.
__device__ __forceinline__ void touch(const void* gmem) {
  [[maybe_unused]] std::uint32_t unused;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(unused) : "l"(gmem));
}

__device__ __forceinline__ void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace msa::cuda::common::ptx
