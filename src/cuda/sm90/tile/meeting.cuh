// SPDX-License-Identifier: MIT
// Where all threads of a CTA meet whose roles come there in places of their own: a named barrier of
// them all wants one place (synccheck tells of divergent threads, and racecheck takes what lies in
// front of it and behind it for a race).
#pragma once

#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace msa::cuda::sm90 {

/// Lies in shared memory.
struct Meeting {
  ptx::Mbarrier barrier;

  /// One thread calls this, then ptx::fence_mbarrier_init and a CTA barrier.
  __device__ __forceinline__ void init(int threads) { ptx::mbarrier_init(&barrier, threads); }

  /// Threads meet an even number of times, `time` 0 and 1 in turn.
  __device__ __forceinline__ void operator()(int time) {
    ptx::mbarrier_arrive(&barrier);
    wait(&barrier, time);
  }
};

}  // namespace msa::cuda::sm90
