// SPDX-License-Identifier: MIT
// Synchronisation: mbarriers in shared memory, named barriers, proxy fences. One instruction per
// function, named after it (PTX ISA 8.0+, sections 9.7.13 and 9.7.14). Knows nothing of tiles or
// pipelines.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "cuda/common/ptx/bar_sync.cuh"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/ptx/shared.cuh"

namespace msa::cuda::sm90::ptx {

using common::ptx::bar_sync;
using common::ptx::cvta_to_shared;
using common::ptx::griddepcontrol_launch_dependents;
using common::ptx::griddepcontrol_wait;

using Mbarrier = std::uint64_t;

__device__ __forceinline__ void mbarrier_init(Mbarrier* bar, std::uint32_t arrivals) {
  ::cuda::ptx::mbarrier_init(bar, arrivals);
}

/// Makes initialised mbarriers visible to the copy engine; a CTA barrier must follow for the other
/// threads.
__device__ __forceinline__ void fence_mbarrier_init() {
  ::cuda::ptx::fence_mbarrier_init(::cuda::ptx::sem_release, ::cuda::ptx::scope_cluster);
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier* bar) {
  ::cuda::ptx::mbarrier_arrive(::cuda::ptx::sem_release, ::cuda::ptx::scope_cta,
                               ::cuda::ptx::space_shared, bar);
}

__device__ __forceinline__ void mbarrier_arrive_expect_tx(Mbarrier* bar, std::uint32_t bytes) {
  ::cuda::ptx::mbarrier_arrive_expect_tx(::cuda::ptx::sem_release, ::cuda::ptx::scope_cta,
                                         ::cuda::ptx::space_shared, bar, bytes);
}

/// True once the phase of this parity has completed; may wait a while inside the hardware.
__device__ __forceinline__ bool mbarrier_try_wait_parity(Mbarrier* bar, std::uint32_t parity) {
  return ::cuda::ptx::mbarrier_try_wait_parity(bar, parity);
}

/// The same, behind which what other CTAs of the cluster sent is visible, too.
__device__ __forceinline__ bool mbarrier_try_wait_parity_cluster(Mbarrier* bar,
                                                                 std::uint32_t parity) {
  return ::cuda::ptx::mbarrier_try_wait_parity(::cuda::ptx::sem_acquire, ::cuda::ptx::scope_cluster,
                                               bar, parity);
}

/// Orders this thread's ordinary shared-memory writes before reads by wgmma and the copy engine.
__device__ __forceinline__ void fence_proxy_async_shared() {
  ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);
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

/// Gives registers of this warpgroup back to the pool, down to `kRegisters` a thread.
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// Takes registers for this warpgroup out of the pool, up to `kRegisters` a thread; waits until
/// they are there.
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace msa::cuda::sm90::ptx
