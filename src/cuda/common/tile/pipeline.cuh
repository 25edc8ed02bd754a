// SPDX-License-Identifier: MIT
// A ring of shared-memory stages between the copy engine and its consumers: one `full` barrier a
// stage (bytes arrive) and one `empty` barrier (consumers are done). Both sides walk the ring with
// a RingPosition of their own.
#pragma once

#include <cstdint>

#include "cuda/common/ptx/barrier.cuh"

namespace msa::cuda::common {

__device__ __forceinline__ void wait(ptx::Mbarrier* bar, std::uint32_t parity) {
  while (!ptx::mbarrier_try_wait_parity(bar, parity)) {
  }
}

/// Stage and lap parity of the next use. Consumers wait for `full` with `parity`, the producer for
/// `empty` with the opposite: a fresh barrier counts as a completed lap, so the first lap finds
/// every stage empty.
template <int kStages>
struct RingPosition {
  int stage = 0;
  std::uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if constexpr (kStages == 1) {
      parity ^= 1;
    } else {
      ++stage;
      if (stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
  /// The same `uses` times.
  __device__ __forceinline__ void advance_far(int uses) {
    const int to = stage + uses;
    stage = to % kStages;
    parity ^= static_cast<std::uint32_t>(to / kStages) & 1;
  }
  /// The same `kUses` times, where whoever starts within the first of them shares every lap.
  template <int kUses>
  __device__ __forceinline__ void advance_by() {
    static_assert(kStages % kUses == 0, "the same uses of every lap");
    if constexpr (kUses == 1 || kStages == kUses) {
      for (int use = 0; use < kUses; ++use) advance();
    } else {
      stage += kUses;
      if (stage >= kStages) {
        stage -= kStages;
        parity ^= 1;
      }
    }
  }
};

/// Barriers of one ring; lies in shared memory.
template <int kStages>
struct Ring {
  ptx::Mbarrier full[kStages];
  ptx::Mbarrier empty[kStages];

  /// One thread calls this, then ptx::fence_mbarrier_init and a CTA barrier. `fillings`: arrivals
  /// that fill a stage, that of expect() among them.
  __device__ __forceinline__ void init(int consumers, int fillings = 1) {
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(&full[i], fillings);
      ptx::mbarrier_init(&empty[i], consumers);
    }
  }
  __device__ __forceinline__ void wait_full(RingPosition<kStages> at) {
    wait(&full[at.stage], at.parity);
  }
  __device__ __forceinline__ void wait_empty(RingPosition<kStages> at) {
    wait(&empty[at.stage], at.parity ^ 1);
  }
  __device__ __forceinline__ void expect(RingPosition<kStages> at, std::uint32_t bytes) {
    ::cuda::ptx::mbarrier_arrive_expect_tx(::cuda::ptx::sem_release, ::cuda::ptx::scope_cta,
                                           ::cuda::ptx::space_shared, &full[at.stage], bytes);
  }
  /// What this thread wrote is in the stage, too.
  __device__ __forceinline__ void arrive(RingPosition<kStages> at) {
    ptx::mbarrier_arrive(&full[at.stage]);
  }
  __device__ __forceinline__ void release(RingPosition<kStages> at) {
    ptx::mbarrier_arrive(&empty[at.stage]);
  }
  /// The same by a whole warp: its reads of the stage are over whatever the others do.
  __device__ __forceinline__ void warp_release(RingPosition<kStages> at, int lane) {
    __syncwarp();
    if (lane == 0) release(at);
  }
};

}  // namespace msa::cuda::common
