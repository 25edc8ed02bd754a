// SPDX-License-Identifier: MIT
// The copy engine: tensor boxes from global to shared memory (cp.async.bulk.tensor, PTX
// ISA 9.7.9.27), descriptor prefetch and L2 cache policies. Coordinates count elements, innermost
// first. One thread issues; completion is counted in bytes on an mbarrier.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <cuda/ptx>

#include "cuda/common/ptx/cp_async.cuh"
#include "cuda/sm90/ptx/barrier.cuh"

namespace msa::cuda::sm90::ptx {

using common::ptx::cp_async;
using common::ptx::cp_async_16;
using common::ptx::cp_async_commit_group;
using common::ptx::cp_async_mbarrier_arrive_noinc;
using common::ptx::cp_async_wait_group;
using common::ptx::touch;

/// Any rank from 2 to 5: the length of `coords` tells.
template <int kRank>
__device__ __forceinline__ void cp_async_bulk_tensor(void* smem, const CUtensorMap* map,
                                                     const std::int32_t (&coords)[kRank],
                                                     Mbarrier* bar) {
  static_assert(kRank >= 2 && kRank <= 5, "tensor maps of this library have 2 to 5 dimensions");
  ::cuda::ptx::cp_async_bulk_tensor(::cuda::ptx::space_cluster, ::cuda::ptx::space_global, smem,
                                    map, coords, bar);
}

/// The same with an L2 policy from createpolicy_*, 4 dimensions (token rows and pages).
__device__ __forceinline__ void cp_async_bulk_tensor_hint(void* smem, const CUtensorMap* map,
                                                          const std::int32_t (&coords)[4],
                                                          Mbarrier* bar, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_"
      "hint"
      " [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(cvta_to_shared(smem)),
      "l"(map), "r"(coords[0]), "r"(coords[1]), "r"(coords[2]), "r"(coords[3]),
      "r"(cvta_to_shared(bar)), "l"(policy)
      : "memory");
}

/// `bytes` side by side, a multiple of 16 as both addresses are.
__device__ __forceinline__ void cp_async_bulk(void* smem, const void* gmem, std::uint32_t bytes,
                                              Mbarrier* bar) {
  ::cuda::ptx::cp_async_bulk(::cuda::ptx::space_cluster, ::cuda::ptx::space_global, smem, gmem,
                             bytes, bar);
}

/// The same with such a policy.
__device__ __forceinline__ void cp_async_bulk_hint(void* smem, const void* gmem,
                                                   std::uint32_t bytes, Mbarrier* bar,
                                                   std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1], %2, [%3], %4;" ::"r"(cvta_to_shared(smem)),
      "l"(gmem), "r"(bytes), "r"(cvta_to_shared(bar)), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void prefetch_tensormap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ std::uint64_t createpolicy_evict_first() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

}  // namespace msa::cuda::sm90::ptx
