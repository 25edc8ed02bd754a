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

__device__ __forceinline__ void walk(const Params& params,
                                     const mma::backward::Loader<Traits>& tile,
                                     mma::backward::Consumer<Traits>& sums, Traits::Shared& shared,
                                     RingPosition<Traits::kStages>& at) {
  tile.load_keys();
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  ptx::fence_proxy_async_shared();  // wgmma reads what this thread copied
  Traits::sync();
  const int steps = tile.steps();
  Step step(shared, sums);
  shared.ring.wait_full(at);
  step.begin(at.stage);
#pragma unroll 1
  for (int left = steps - 1; left >= 0; --left) {
    const Sight sight = shared.sights[at.stage];
    if (sight == Sight::whole) {
      step.run<false>(at, params.scale_log2, left > 0);
    } else if (sight == Sight::masked) {
      step.run<true>(at, params.scale_log2, left > 0);
    } else {
      mma::backward::work_step<Traits, true>(params, shared.infos[at.stage], at.stage, sums,
                                             shared);
      shared.ring.release(at);
      if (left > 0) {
        RingPosition<Traits::kStages> next = at;
        next.advance();
        shared.ring.wait_full(next);
        step.begin(next.stage);
      }
    }
    at.advance();
  }
  if (threadIdx.x == 0) shared.first_stage = at.stage;
}

__device__ __forceinline__ void consume(const Params& params, Traits::Shared& shared) {
  RingPosition<Traits::kStages> at{};
#pragma unroll 1
  while (mma::cta::take_item(params.pairs, params.work, shared, shared.meeting)) {
    const mma::backward::Loader<Traits> tile(params, shared);
    mma::backward::Consumer<Traits> sums(shared);
    walk(params, tile, sums, shared, at);
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
