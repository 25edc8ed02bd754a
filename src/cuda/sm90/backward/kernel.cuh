// SPDX-License-Identifier: MIT
// The backward kernel of Hopper: that of mma/backward, whose items, loads, masked steps and order
// of shares these are, with whole steps by wgmma. See docs/kernels/backward.md.
#pragma once

#include "cuda/launch.h"
#include "cuda/mma/backward/kernel.cuh"
#include "cuda/sm90/backward/whole_step.cuh"
#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/ptx/copy.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace msa::cuda::sm90::backward {

template <class Traits, Wanted wanted>
__device__ __forceinline__ void walk(const Params& params,
                                     const mma::backward::Loader<Traits>& loader,
                                     mma::backward::Consumer<Traits>& consumer,
                                     typename Traits::Shared& shared) {
  mma::backward::begin_walk(params, loader);
#pragma unroll 1
  for (int step = 0; step < loader.steps(); ++step) {
    ptx::cp_async_wait_group<0>();
    ptx::fence_proxy_async_shared();  // wgmma reads what this thread copied
    // The rows of a step ascend: if the first one sees all keys, all do, but for the blind.
    const bool blind = __syncthreads_or(loader.is_blind(step)) != 0;
    if (blind || loader.info(step).limit[0] < Traits::kKeys) {
      mma::backward::load_ahead(loader, step);
      mma::backward::work_step<Traits, true>(params, loader, consumer, shared, step);
    } else {
      WholeStep<Traits, wanted>(shared, consumer)
          .run(loader.info(step), step % 2, params.scale_log2, params.shares,
               [&] { mma::backward::load_ahead(loader, step); });
    }
  }
}

// Numbers in place of a Wanted: nvcc's host stub cannot name one.
template <class Traits, bool kKeys, bool kQueries>
__global__ void __launch_bounds__(Traits::kThreads) kernel(const __grid_constant__ Params params) {
  constexpr Wanted wanted{.keys = kKeys, .queries = kQueries};
  extern __shared__ std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(align_shared<kSwizzleAtomBytes>(raw));
#pragma unroll 1
  while (mma::cta::take_item(params.pairs, params.work, shared)) {
    const mma::backward::Loader<Traits> loader(params, shared);
    mma::backward::Consumer<Traits> consumer(shared);
    walk<Traits, wanted>(params, loader, consumer, shared);
    if constexpr (wanted.keys) {
      mma::backward::store_sums<Traits>(params, shared, 0, params.dk, consumer.dk_, params.scale);
      mma::backward::store_sums<Traits>(params, shared, 1, params.dv, consumer.dv_, 1.0f);
    }
  }
}

template <Wanted wanted>
void launch_instance(const Params& params, int ctas, cudaStream_t stream) {
  using Traits = mma::backward::Traits<kTile>;
  launch_kernel(kernel<Traits, wanted.keys, wanted.queries>,
                {.grid = dim3(static_cast<unsigned>(ctas)),
                 .block = dim3(Traits::kThreads),
                 .shared_bytes = Traits::kSharedBytes + kSwizzleAtomBytes,
                 .stream = stream},
                params);
}

}  // namespace msa::cuda::sm90::backward
