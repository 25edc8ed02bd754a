// SPDX-License-Identifier: MIT
// Synchronisation that every architecture from 8.0 on has: mbarriers in shared memory (PTX ISA
// 9.7.13.15), named barriers, a counter. One instruction a function, named after it.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "cuda/common/ptx/bar_sync.cuh"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/ptx/shared.cuh"

namespace msa::cuda::common::ptx {

using Mbarrier = std::uint64_t;

__device__ __forceinline__ void mbarrier_init(Mbarrier* bar, std::uint32_t arrivals) {
  ::cuda::ptx::mbarrier_init(bar, arrivals);
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier* bar) {
#if __CUDA_ARCH__ >= 900
  ::cuda::ptx::mbarrier_arrive(::cuda::ptx::sem_release, ::cuda::ptx::scope_cta,
                               ::cuda::ptx::space_shared, bar);
#else
  ::cuda::ptx::mbarrier_arrive(bar);
#endif
}

/// True once the phase of this parity has completed; may wait a while inside the hardware.
__device__ __forceinline__ bool mbarrier_try_wait_parity(Mbarrier* bar, std::uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  return ::cuda::ptx::mbarrier_try_wait_parity(bar, parity);
#else
  return ::cuda::ptx::mbarrier_test_wait_parity(bar, parity);
#endif
}

/// Makes initialised mbarriers visible to the copy engine, where there is one; a CTA barrier must
/// follow for the other threads.
__device__ __forceinline__ void fence_mbarrier_init() {
#if __CUDA_ARCH__ >= 900
  ::cuda::ptx::fence_mbarrier_init(::cuda::ptx::sem_release, ::cuda::ptx::scope_cluster);
#endif
}

/// Orders this thread's ordinary shared-memory writes before reads and writes by wgmma and the copy
/// engine. Nothing on architectures below 9.0, which have neither.
__device__ __forceinline__ void fence_proxy_async_shared() {
#if __CUDA_ARCH__ >= 900
  ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);
#endif
}

/// Adds to a counter in shared memory; what it was before.
__device__ __forceinline__ int atom_add_shared(int* counter, int x) {
  int before;
  asm volatile("atom.shared.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "r"(cvta_to_shared(counter)), "r"(x)
               : "memory");
  return before;
}

}  // namespace msa::cuda::common::ptx
