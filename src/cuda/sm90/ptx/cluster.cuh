// SPDX-License-Identifier: MIT
// Clusters of CTAs: their barrier and stores to each other's shared memory (PTX ISA 9.7.8.22,
// 9.7.13). One instruction per function, named after it.
#pragma once

#include <cstdint>

#include "cuda/sm90/ptx/barrier.cuh"

namespace msa::cuda::sm90::ptx {

/// Every thread of the cluster arrives, and waits later. Relaxed: what it wrote before is not
/// published, but for mbarriers behind fence_mbarrier_init. Threads that exit count as arrived.
__device__ __forceinline__ void barrier_cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void barrier_cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// The address of this CTA's `shared`, in CTA `rank` of the cluster.
__device__ __forceinline__ std::uint32_t mapa(const void* shared, int rank) {
  std::uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(cvta_to_shared(shared)), "r"(rank));
  return address;
}

/// 16 bytes to another CTA's shared memory; its mbarrier `bar` counts them when they are there.
__device__ __forceinline__ void st_async(std::uint32_t address, float4 x, std::uint32_t bar) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(address),
      "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "r"(bar)
      : "memory");
}

}  // namespace msa::cuda::sm90::ptx
