// SPDX-License-Identifier: MIT
// The backward kernel of Hopper: that of mma/backward, whose items, masked steps and order of
// shares these are, with whole steps by wgmma, of rows that a producer gathers. See
// docs/kernels/backward.md.
#pragma once

#include "cuda/launch.h"
#include "cuda/mma/backward/kernel.cuh"
#include "cuda/sm90/backward/producer.cuh"
#include "cuda/sm90/backward/whole_step.cuh"
#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/ptx/copy.cuh"

namespace msa::cuda::sm90::backward {

template <Wanted wanted>
__device__ __forceinline__ void walk(const Params& params,
                                     const mma::backward::Loader<Traits>& tile,
                                     mma::backward::Consumer<Traits>& sums, Traits::Shared& shared,
                                     RingPosition<Traits::kStages>& at) {
  tile.load_keys();
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  ptx::fence_proxy_async_shared();  // wgmma reads what this thread copied
  Traits::sync();
  if constexpr (wanted.queries) tile.average();
#pragma unroll 1
  for (int step = 0; step < tile.steps(); ++step) {
    const Traits::RowInfo& rows = shared.infos[at.stage];
    shared.ring.wait_full(at);
    if constexpr (wanted.queries) Traits::sync();  // nobody reads dS of the step before
    if (shared.masked[at.stage] != 0) {
      mma::backward::work_step<Traits, true>(params, rows, at.stage, sums, shared);
    } else {
      WholeStep<wanted>(shared, sums).run(rows, at.stage, params.scale_log2, params.shares);
    }
    shared.ring.release(at);
    at.advance();
  }
}

template <Wanted wanted>
__device__ __forceinline__ void consume(const Params& params, Traits::Shared& shared) {
  RingPosition<Traits::kStages> at{};
#pragma unroll 1
  while (mma::cta::take_item(params.pairs, params.work, shared, Traits::meet)) {
    const mma::backward::Loader<Traits> tile(params, shared);
    mma::backward::Consumer<Traits> sums(shared);
    walk<wanted>(params, tile, sums, shared, at);
    if constexpr (wanted.keys) {
      mma::backward::store_sums<Traits>(params, shared, 0, params.dk, sums.dk_, params.scale);
      mma::backward::store_sums<Traits>(params, shared, 1, params.dv, sums.dv_, 1.0f);
    }
  }
}

// Numbers in place of a Wanted: nvcc's host stub cannot name one.
template <bool kKeys, bool kQueries>
__global__ void __launch_bounds__(Traits::kCtaThreads, 1)
    kernel(const __grid_constant__ Params params, const __grid_constant__ Maps maps) {
  extern __shared__ std::uint8_t raw[];
  auto& shared = *reinterpret_cast<Traits::Shared*>(align_shared<kSwizzleAtomBytes>(raw));
  if (threadIdx.x == 0) {
    // Every lane arrives for itself: the producer's tell of their rows, and racecheck does not see
    // that __syncwarp puts a consumer's reads in front of another lane's arrival.
    shared.ring.init(Traits::kThreads, 32);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= Traits::kThreads) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    Producer producer(params, maps, shared);
#pragma unroll 1
    while (mma::cta::take_item(params.pairs, params.work, shared, Traits::meet)) {
      producer.run();
    }
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    consume<Wanted{.keys = kKeys, .queries = kQueries}>(params, shared);
  }
}

template <Wanted wanted>
void launch_instance(const Params& params, const Maps& maps, int ctas, cudaStream_t stream) {
  launch_kernel(kernel<wanted.keys, wanted.queries>,
                {.grid = dim3(static_cast<unsigned>(ctas)),
                 .block = dim3(Traits::kCtaThreads),
                 .shared_bytes = Traits::kSharedBytes,
                 .stream = stream},
                params, maps);
}

}  // namespace msa::cuda::sm90::backward
