// SPDX-License-Identifier: MIT
// The kernel of gradients of keys and values of Hopper: that of mma/backward, whose items these
// are, with steps by wgmma, of rows that producers gather. Steps whose rows are kept apart are
// those of mma/backward. See docs/kernels/backward.md.
#pragma once

#include "cuda/launch.h"
#include "cuda/mma/backward/kernel.cuh"
#include "cuda/sm90/backward/producer.cuh"
#include "cuda/sm90/backward/step.cuh"
#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/ptx/copy.cuh"

namespace msa::cuda::sm90::backward {

/// Where a step lies, counted from the CTA's first: one register in place of two.
__device__ __forceinline__ RingPosition<Traits::kStages> position_of(int step) {
  return {step % Traits::kStages, static_cast<std::uint32_t>(step / Traits::kStages) & 1};
}

__device__ __forceinline__ void walk(const Params& params,
                                     const mma::backward::Loader<Traits>& tile,
                                     mma::backward::Consumer<Traits>& sums, Traits::Shared& shared,
                                     int& next) {
  tile.load_keys();
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  ptx::fence_proxy_async_shared();  // wgmma reads what this thread copied
  Traits::sync();
  const int end = next + tile.steps();
  Step step(shared, sums);
  shared.ring.wait_full(position_of(next));
  step.begin(position_of(next).stage);
#pragma unroll 1
  do {
    const RingPosition<Traits::kStages> at = position_of(next);
    ++next;
    const Sight sight = shared.sights[at.stage];
    if (sight == Sight::whole) {
      step.run<false>(at, params.scale_log2, next < end);
    } else if (sight == Sight::masked) {
      step.run<true>(at, params.scale_log2, next < end);
    } else {
      mma::backward::work_step<Traits, true>(params, shared.infos[at.stage], at.stage, sums,
                                             shared);
      shared.ring.release(at);
      if (next < end) {
        shared.ring.wait_full(position_of(next));
        step.begin(position_of(next).stage);
      }
    }
  } while (next < end);
  if (threadIdx.x == 0) shared.first_stage = position_of(next).stage;
}

__device__ __forceinline__ void consume(const Params& params, Traits::Shared& shared) {
  int next = 0;  // of all steps
#pragma unroll 1
  while (mma::cta::take_item(params.pairs, params.work, shared, shared.meeting)) {
    const mma::backward::Loader<Traits> tile(params, shared);
    mma::backward::Consumer<Traits> sums(shared);
    walk(params, tile, sums, shared, next);
    mma::backward::store_sums<Traits>(params, shared, 0, params.dk, sums.dk_, params.scale);
    mma::backward::store_sums<Traits>(params, shared, 1, params.dv, sums.dv_, 1.0f);
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kCtaThreads, 1)
    kernel(const __grid_constant__ Params params, const __grid_constant__ Maps maps) {
  extern __shared__ std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(align_shared<kSwizzleAtomBytes>(raw));
  if (threadIdx.x == 0) {
    // Every lane arrives for itself: the producers' tell of their rows, and racecheck does not see
    // that __syncwarp puts a consumer's reads in front of another lane's arrival.
    shared.ring.init(Traits::kThreads, 32);
    shared.meeting.init(Traits::kCtaThreads);
    shared.first_stage = 0;
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= Traits::kThreads) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    Producer<Traits> producer(params, maps, shared);
#pragma unroll 1
    while (mma::cta::await_item(params.work, shared, shared.meeting)) producer.run();
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    consume(params, shared);
  }
}

template <Config cfg>
void launch_instance(const Params& params, const Maps& maps, int ctas, cudaStream_t stream) {
  static_assert(cfg == kTile, "the tile that Traits are of");
  launch_kernel(kernel<Traits>,
                {.grid = dim3(static_cast<unsigned>(ctas)),
                 .block = dim3(Traits::kCtaThreads),
                 .shared_bytes = Traits::kSharedBytes,
                 .stream = stream},
                params, maps);
}

}  // namespace msa::cuda::sm90::backward
