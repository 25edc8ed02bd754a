// SPDX-License-Identifier: MIT
// The synchronisation of common/ptx, beside that of this architecture: mbarriers that count bytes,
// proxy fences, registers that move between warpgroups. One instruction per function, named after
// it (PTX ISA 8.0+, sections 9.7.13 and 9.7.14). Knows nothing of tiles or pipelines.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "cuda/common/ptx/barrier.cuh"

namespace msa::cuda::sm90::ptx {

using common::ptx::atom_add_shared;
using common::ptx::bar_sync;
using common::ptx::cvta_to_shared;
using common::ptx::fence_mbarrier_init;
using common::ptx::fence_proxy_async_shared;
using common::ptx::griddepcontrol_launch_dependents;
using common::ptx::griddepcontrol_wait;
using common::ptx::Mbarrier;
using common::ptx::mbarrier_arrive;
using common::ptx::mbarrier_init;
using common::ptx::mbarrier_try_wait_parity;

__device__ __forceinline__ void mbarrier_arrive_expect_tx(Mbarrier* bar, std::uint32_t bytes) {
  ::cuda::ptx::mbarrier_arrive_expect_tx(::cuda::ptx::sem_release, ::cuda::ptx::scope_cta,
                                         ::cuda::ptx::space_shared, bar, bytes);
}

/// Awaits so many bytes more in the present phase; nobody arrives.
__device__ __forceinline__ void mbarrier_expect_tx(Mbarrier* bar, std::uint32_t bytes) {
  asm volatile(
      "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(cvta_to_shared(bar)),
      "r"(bytes)
      : "memory");
}

/// mbarrier_try_wait_parity, behind which what other CTAs of the cluster sent is visible, too.
__device__ __forceinline__ bool mbarrier_try_wait_parity_cluster(Mbarrier* bar,
                                                                 std::uint32_t parity) {
  return ::cuda::ptx::mbarrier_try_wait_parity(::cuda::ptx::sem_acquire, ::cuda::ptx::scope_cluster,
                                               bar, parity);
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
