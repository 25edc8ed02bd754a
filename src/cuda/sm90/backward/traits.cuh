// SPDX-License-Identifier: MIT
// Roles and shared memory of Hopper's backward kernel, beside those of mma/backward: two consumer
// warpgroups, and a producer that fills a ring with the rows of steps.
#pragma once

#include "cuda/mma/backward/traits.cuh"
#include "cuda/sm90/backward/launch.h"
#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/tile/descriptor.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace msa::cuda::sm90::backward {

struct Traits : mma::backward::Traits<kTile> {
  using Base = mma::backward::Traits<kTile>;
  static constexpr int kCtaThreads = kThreads + 128;  // kThreads: of the two consumers
  static constexpr int kStages = 2;
  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = 240;
  static constexpr int kRowBytes = kRows * kHeadDim * 2;  // of q, or dout, of a step
  static_assert(kThreads == 256 && 2 * kConsumerRegisters + kProducerRegisters <= 3 * 168,
                "registers of a CTA's warpgroups");
  static_assert(kStages == sizeof(Base::Shared::q) / kRowBytes &&
                    kStages <= mma::backward::kRowInfos,
                "a stage has tiles and rows of its own");

  struct Shared : Base::Shared {
    Ring<kStages> ring;   // q, dout and infos of a step
    int masked[kStages];  // whether some row does not see all keys
  };
  static_assert(sizeof(Shared) <= kSharedBytes, "what planning counts with");

  /// The consumers meet.
  __device__ __forceinline__ static void sync() { ptx::bar_sync(1, kThreads); }
};

}  // namespace msa::cuda::sm90::backward
