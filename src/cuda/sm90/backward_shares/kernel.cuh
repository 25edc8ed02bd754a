// SPDX-License-Identifier: MIT
// Shares of dq, keys outermost, of the items of mma/backward: what a tile of keys gives to each of
// the tokens that listed its block. See docs/kernels/backward.md.
#pragma once

#include "cuda/launch.h"
#include "cuda/mma/backward/loader.cuh"
#include "cuda/mma/tile/take_item.cuh"
#include "cuda/sm90/backward/producer.cuh"
#include "cuda/sm90/backward_shares/consumer.cuh"
#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/ptx/copy.cuh"
#include "cuda/sm90/tile/swizzle.cuh"

namespace msa::cuda::sm90::backward_shares {

/// What the tile's keys have in common, a thread a column of half of the rows: the upper bits, or
/// what they leave.
__device__ __forceinline__ void write_mean(const Params& params, Traits::Shared& shared) {
  constexpr int kRows = Traits::kMeanRows / 2;
  static_assert(Traits::kThreads == 2 * Traits::kHeadDim, "a thread for each");
  const auto thread = static_cast<int>(threadIdx.x);
  const int column = thread % Traits::kHeadDim;
  const int first = thread / Traits::kHeadDim * kRows;
  const std::int64_t place = shared.item.head * params.mean_tiles +
                             params.pairs.first_blocks[shared.item.request] + shared.item.tile;
  const float mean = params.means[place * Traits::kHeadDim + column];
  const Traits::Item upper(mean);
  const Traits::Item own = first == 0 ? upper : Traits::Item(mean - common::to_float(upper));
#pragma unroll
  for (int row = first; row < first + kRows; ++row)
    *reinterpret_cast<Traits::Item*>(shared.mean + swizzled_item(row, column, Traits::kMeanRows)) =
        own;
}

/// The tile's keys and values, and what keys have in common, by all consumers.
__device__ __forceinline__ void load_tile(const Params& params,
                                          const mma::backward::Loader<Traits>& tile,
                                          Traits::Shared& shared) {
  tile.load_keys();
  ptx::cp_async_commit_group();
  write_mean(params, shared);
  ptx::cp_async_wait_group<0>();
  ptx::fence_proxy_async_shared();  // wgmma reads what this thread copied
  Traits::sync();
}

__device__ __forceinline__ void consume(const Params& params, Traits::Shared& shared) {
  const int warpgroup = __shfl_sync(common::kAllLanes, static_cast<int>(threadIdx.x), 0) / 128;
  RingPosition<Traits::kStages> at{};
  Consumer consumer(params, shared);
#pragma unroll 1
  while (mma::cta::take_item(params.pairs, params.work, shared, shared.meeting)) {
    const mma::backward::Loader<Traits> tile(params, shared);
    load_tile(params, tile, shared);
    const int steps = tile.steps();
    consumer.run(at, steps, warpgroup);
    at.advance_far(steps);
    if (threadIdx.x == 0) shared.first_stage = at.stage;
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kCtaThreads, 1)
    kernel(const __grid_constant__ Params params, const __grid_constant__ Maps maps) {
  if (params.work.wanted != nullptr && *params.work.wanted == 0) return;
  extern __shared__ std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(align_shared<kSwizzleAtomBytes>(raw));
  if (threadIdx.x == 0) {
    // A step is one warpgroup's. Every lane of a producer arrives for itself, as in sm90/backward.
    shared.ring.init(Traits::kThreads / Traits::kConsumers, 32);
    shared.meeting.init(Traits::kCtaThreads);
    shared.first_stage = 0;
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= Traits::kThreads) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    backward::Producer<Traits> producer(params, maps, shared);
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

}  // namespace msa::cuda::sm90::backward_shares
