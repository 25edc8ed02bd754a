// SPDX-License-Identifier: MIT
// Roles and shared memory of Hopper's kernel of gradients of keys and values, whose tile and rows
// are those of mma/backward: two consumer warpgroups, and a producer warp for each stage of a ring.
#pragma once

#include "cuda/mma/backward/traits.cuh"
#include "cuda/sm90/backward/launch.h"
#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/tile/descriptor.cuh"
#include "cuda/sm90/tile/meeting.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/tile/sight.cuh"

namespace msa::cuda::sm90::backward {

struct Traits : mma::backward::Traits<kTile> {
  static constexpr bool kQueries = false;
  static constexpr bool kShares = false;   // of dq
  static constexpr int kWeighedRows = 16;  // of rows kept apart: registers are fewer
  static constexpr int kStages = 4;        // a producer warp each
  static constexpr int kCtaThreads = kThreads + 128;
  static constexpr int kConsumerRegisters = 240;
  static constexpr int kProducerRegisters = 24;
  static_assert(kThreads == 256 && 2 * kConsumerRegisters + kProducerRegisters <= 3 * 168,
                "registers of a CTA's warpgroups");
  static constexpr int kKeyBytes = kKeys * kHeadDim * 2;
  static constexpr int kRowBytes = kRows * kHeadDim * 2;  // of q, or dout, of a step

  struct Shared {
    alignas(1024) std::uint8_t k[kKeyBytes];
    alignas(1024) std::uint8_t v[kKeyBytes];
    alignas(1024) std::uint8_t q[kStages][kRowBytes];
    alignas(1024) std::uint8_t dout[kStages][kRowBytes];
    RowInfo infos[kStages];
    Sight sights[kStages];
    int number;       // of the item
    int first_stage;  // of its steps
    common::backward::WorkItem item;
    RequestRecord request;
    Ring<kStages> ring;
    Meeting meeting;
  };
  // Dynamic shared memory is not aligned to 1024.
  static constexpr int kSharedBytes = sizeof(Shared) + kSwizzleAtomBytes;
  static_assert(kSharedBytes <= 232448, "227 KB a CTA");

  /// The consumers meet.
  __device__ __forceinline__ static void sync() { ptx::bar_sync(1, kThreads); }
};

}  // namespace msa::cuda::sm90::backward
