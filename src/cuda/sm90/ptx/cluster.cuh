// SPDX-License-Identifier: MIT
// Clusters of CTAs: their barrier and reads from each other's shared memory (PTX ISA 9.7.8.22,
// 9.7.13). One instruction per function, named after it.
#pragma once

#include <cstdint>

#include "cuda/sm90/ptx/barrier.cuh"

namespace msa::cuda::sm90::ptx {

/// Every thread of the cluster that has not exited: arrive and wait. What a thread wrote to its
/// shared memory before is visible to all behind it.
__device__ __forceinline__ void barrier_cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

/// The address of this CTA's `shared`, in CTA `rank` of the cluster.
__device__ __forceinline__ std::uint32_t mapa(const void* shared, int rank) {
  std::uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(cvta_to_shared(shared)), "r"(rank));
  return address;
}

__device__ __forceinline__ float2 ld_shared_cluster(std::uint32_t address) {
  float2 x;
  asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];"
               : "=f"(x.x), "=f"(x.y)
               : "r"(address)
               : "memory");
  return x;
}

}  // namespace msa::cuda::sm90::ptx
