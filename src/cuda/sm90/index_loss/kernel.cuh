// SPDX-License-Identifier: MIT
// Hopper's kernels of the index loss, over the items of mma/index_loss: keys outermost. See
// docs/kernels/backward.md.
#pragma once

#include "cuda/launch.h"
#include "cuda/mma/index_loss/kernel.cuh"
#include "cuda/sm90/index_loss/consumer.cuh"
#include "cuda/sm90/index_loss/producer.cuh"
#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/ptx/copy.cuh"

namespace msa::cuda::sm90::index_loss {

__device__ __forceinline__ void load_keys(const Params& params, Traits::Shared& shared,
                                          bool teacher) {
  mma::index_loss::Loader<Traits>(params, shared).load_keys(teacher);
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  ptx::fence_proxy_async_shared();  // wgmma reads what this thread copied
  Traits::sync();
}

/// work(tokens, exchange, stage) of each of the item's steps.
template <class Work>
__device__ __forceinline__ void walk_steps(Consumer& consumer, Traits::Shared& shared,
                                           RingPosition<Traits::kSteps>& at, const Work& work) {
  const int steps = Traits::steps_of(shared.item);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    Traits::Exchange& exchange = shared.exchanges[step % 2];
    consumer.tell_in(exchange);
    shared.steps.wait_full(at);
    work(shared.infos[at.stage], exchange, at.stage);
    shared.steps.release(at);
    at.advance();
  }
}

__device__ __forceinline__ void walk_student(const Params& params, Consumer& consumer,
                                             Traits::Shared& shared,
                                             RingPosition<Traits::kSteps>& at) {
  load_keys(params, shared, false);
  walk_steps(consumer, shared, at,
             [&](const Traits::TokenInfo& tokens, const Traits::Exchange& exchange, int stage) {
               consumer.score(tokens, stage, params.index_scale_log2);
               consumer.sum_student();
               Traits::sync();
               mma::index_loss::store_student<Traits>(params, tokens, exchange);
             });
}

/// Behind the scores and weights of a step.
template <bool kMasked>
__device__ __forceinline__ void finish_step(const Params& params, const Traits::TokenInfo& tokens,
                                            int stage, Consumer& consumer,
                                            const Traits::Exchange& exchange) {
  const bool queries = params.shares.steps != nullptr;
  consumer.add_keys(tokens, params.sums.data != nullptr, queries, params.weights != nullptr,
                    [&](const std::uint32_t(&e)[4]) {
                      if constexpr (kMasked) {
                        consumer.add_product<true>(tokens, stage, e);
                      } else {
                        consumer.add_whole(stage, e);
                      }
                    });
  Traits::sync();
  mma::index_loss::store_loss<Traits>(params, tokens, exchange);
  if (queries) consumer.share_queries<kMasked>(tokens, params.shares);
}

__device__ __forceinline__ void walk(const Params& params, Consumer& consumer,
                                     Traits::Shared& shared, RingPosition<Traits::kSteps>& at,
                                     RingPosition<Traits::kTurnStages>& turn) {
  load_keys(params, shared, true);
  consumer.take_keys();
  constexpr float kPerHead = 1.0f / kGroup;
  walk_steps(consumer, shared, at,
             [&](const Traits::TokenInfo& tokens, const Traits::Exchange& exchange, int stage) {
               consumer.compare(params, tokens, stage, turn);
               consumer.derive(tokens, kPerHead);
               if (shared.masked[stage] != 0) {
                 finish_step<true>(params, tokens, stage, consumer, exchange);
               } else {
                 finish_step<false>(params, tokens, stage, consumer, exchange);
               }
             });
}

template <bool kStudent>
__device__ __forceinline__ void consume(const Params& params, Traits::Shared& shared) {
  RingPosition<Traits::kSteps> at{};
  RingPosition<Traits::kTurnStages> turn{};
#pragma unroll 1
  while (mma::cta::take_item(params.pairs, params.work, shared, shared.meeting)) {
    Consumer consumer(shared);
    if constexpr (kStudent) {
      walk_student(params, consumer, shared, at);
    } else {
      walk(params, consumer, shared, at, turn);
      mma::index_loss::store_sums<Traits>(params, consumer, shared);
    }
  }
}

template <bool kStudent>
__device__ __forceinline__ void produce(const Params& params, const Maps& maps,
                                        Traits::Shared& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32 - Traits::kWarps;
  if (warp < Traits::kSteps) {
    Finder finder(params, shared, warp);
#pragma unroll 1
    while (mma::cta::await_item(params.work, shared, shared.meeting)) finder.run<kStudent>();
  } else {
    Gatherer gatherer(params, maps, shared);
#pragma unroll 1
    while (mma::cta::await_item(params.work, shared, shared.meeting)) {
      if constexpr (!kStudent) gatherer.run();
    }
  }
}

template <class Traits, bool kStudent>
__global__ void __launch_bounds__(Traits::kCtaThreads, 1)
    kernel(const __grid_constant__ Params params, const __grid_constant__ Maps maps) {
  extern __shared__ std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(align_shared<kSwizzleAtomBytes>(raw));
  if (threadIdx.x == 0) {
    // Every lane arrives for itself, as in sm90/backward; the gatherer reads steps, too.
    shared.steps.init(Traits::kThreads + (kStudent ? 0 : 32), 32);
    shared.turns.init(Traits::kThreads);
    shared.meeting.init(Traits::kCtaThreads);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= Traits::kThreads) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    produce<kStudent>(params, maps, shared);
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    consume<kStudent>(params, shared);
  }
}

template <Config cfg>
void launch_instance(const Params& params, const Maps& maps, int ctas, cudaStream_t stream) {
  static_assert(cfg == kTile, "the tile that Traits are of");
  const LaunchConfig config{.grid = dim3(static_cast<unsigned>(ctas)),
                            .block = dim3(Traits::kCtaThreads),
                            .shared_bytes = Traits::kSharedBytes,
                            .stream = stream};
  if (params.student_shares != nullptr) {
    launch_kernel(kernel<Traits, true>, config, params, maps);
  } else {
    launch_kernel(kernel<Traits, false>, config, params, maps);
  }
}

}  // namespace msa::cuda::sm90::index_loss
