// SPDX-License-Identifier: MIT
// Roles and shared memory of Hopper's kernel of shares of dq: those of sm90/backward, but that a
// consumer warpgroup has all keys of every second step.
#pragma once

#include "cuda/sm90/backward/traits.cuh"
#include "cuda/sm90/backward_shares/launch.h"

namespace msa::cuda::sm90::backward_shares {

struct Traits : backward::Traits {
  static constexpr bool kShares = true;
  static constexpr int kConsumers = kThreads / 128;  // warpgroups
  static constexpr int kConsumerRegisters = 232;     // three accumulators of 64
  static constexpr int kProducerRegisters = 40;
  static constexpr int kMeanRows = 16;  // of one wgmma
  static_assert(2 * kConsumerRegisters + kProducerRegisters <= 3 * 168,
                "registers of a CTA's warpgroups");

  struct Shared {
    alignas(1024) std::uint8_t k[kKeyBytes];
    alignas(1024) std::uint8_t v[kKeyBytes];
    alignas(1024) std::uint8_t q[kStages][kRowBytes];
    alignas(1024) std::uint8_t dout[kStages][kRowBytes];
    // What the tile's keys have in common, in two items: the upper bits in the front half of the
    // rows.
    alignas(1024) std::uint8_t mean[kMeanRows * kHeadDim * 2];
    RowInfo infos[kStages];
    Sight sights[kStages];
    int number;       // of the item
    int first_stage;  // of its steps
    common::backward::WorkItem item;
    RequestRecord request;
    Ring<kStages> ring;
    Meeting meeting;
  };
  static constexpr int kSharedBytes = sizeof(Shared) + kSwizzleAtomBytes;
  static_assert(kSharedBytes <= 232448, "227 KB a CTA");
};

}  // namespace msa::cuda::sm90::backward_shares
