// SPDX-License-Identifier: MIT
// Shared memory and roles of the kernel of gradients of queries: those of attention, with dout
// beside q. Both have one buffer, which the scheduler fills again once nobody multiplies them any
// more; gradients leave through a buffer of their own.
#pragma once

#include "cuda/sm90/attend/traits.cuh"
#include "cuda/sm90/backward_queries/config.h"

namespace msa::cuda::sm90::backward_queries {

using attend::Job;

/// What the keys of a block have in common.
__device__ __forceinline__ const float* mean_of(const Params& params, const Job& job, int block) {
  const std::int64_t blocks = job.head * params.mean_blocks + params.first_blocks[job.request];
  return params.means + (blocks + block) * kHeadDim;
}

template <Walk kWalk>
struct Traits
    : attend::Traits<attend::Config{.head_dim = kHeadDim, .block = kBlock, .walk = kWalk}> {
  using Base = attend::Traits<attend::Config{.head_dim = kHeadDim, .block = kBlock, .walk = kWalk}>;
  using Params = backward_queries::Params;
  using Maps = backward_queries::Maps;
  static constexpr bool kGradients = true;
  static constexpr int kRowBuffers = 1;
  static constexpr int kMeanBytes = kHeadDim * 4;
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;  // three accumulators of 64
  static_assert(2 * kConsumerRegisters + kProducerRegisters <= 3 * 168,
                "registers of a CTA's warpgroups");
  __device__ __forceinline__ static int row_buffer(int) { return 0; }

  struct Shared {
    alignas(1024) std::uint8_t q[kRowBuffers][Base::kQueryBytes];
    alignas(1024) std::uint8_t dout[kRowBuffers][Base::kQueryBytes];
    alignas(1024) std::uint8_t k[Base::kKeyStages][Base::kBlockBytes];
    alignas(1024) std::uint8_t v[Base::kKeyStages][Base::kBlockBytes];
    alignas(1024) std::uint8_t dq[Base::kQueryBytes];
    alignas(16) float means[Base::kKeyStages][kHeadDim];  // of the keys in k
    Job jobs[Base::kQueryStages];
    attend::ListEntry lists[Base::kQueryStages][Base::kListedAhead];
    int suspects[Base::kQueryStages];
    ptx::Mbarrier described[Base::kQueryStages];
    ptx::Mbarrier rows_read;  // q and dout of a tile are multiplied
    Ring<Base::kQueryStages> q_ring;
    Ring<Base::kKeyStages> k_ring;
    Ring<Base::kKeyStages> v_ring;
  };
  static constexpr int kSharedBytes = sizeof(Shared) + 1024;
  static_assert(kSharedBytes <= 232448, "227 KB a CTA");
};

}  // namespace msa::cuda::sm90::backward_queries
