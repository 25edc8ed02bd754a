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

/// What is done of a step: begin() with what all warps have told of the step before, finish() the
/// step before, tell() this one. end() stands for begin() behind the item's last step.
struct StudentWork {
  const Params& params;
  Consumer& consumer;
  Traits::Shared& shared;

  __device__ __forceinline__ void begin(int stage) {
    consumer.score(shared.infos[stage], stage, params.index_scale_log2);
    consumer.await_before();
  }
  __device__ __forceinline__ void end() { consumer.await_before(); }
  __device__ __forceinline__ void finish(int stage) {
    mma::index_loss::store_student<Traits>(params, shared.infos[stage], consumer.before());
  }
  __device__ __forceinline__ void tell(int) {
    consumer.sum_student();
    consumer.tell();
  }
};

struct LossWork {
  const Params& params;
  Consumer& consumer;
  Traits::Shared& shared;
  RingPosition<Traits::kTurnStages>& turn;

  __device__ __forceinline__ void begin(int stage) {
    if (shared.blind[stage] != 0) {
      consumer.compare<true>(params, shared.infos[stage], stage, turn);
    } else {
      consumer.compare<false>(params, shared.infos[stage], stage, turn);
    }
  }
  __device__ __forceinline__ void end() { consumer.make_share(); }
  __device__ __forceinline__ void finish(int stage) {
    const Traits::TokenInfo& tokens = shared.infos[stage];
    mma::index_loss::store_loss<Traits>(params, tokens, consumer.before());
    if (params.shares.steps == nullptr) return;
    if (consumer.keeps_keys_apart(shared.sights[stage])) {
      consumer.share_queries<true>(tokens, consumer.before(), params.shares);
    } else {
      consumer.store_whole_share(tokens, params.shares);
    }
  }
  __device__ __forceinline__ void tell(int stage) {
    constexpr float kPerHead = 1.0f / kGroup;
    const Traits::TokenInfo& tokens = shared.infos[stage];
    consumer.derive(tokens, kPerHead);
    if (shared.sights[stage] == Sight::apart) {
      add_keys(tokens,
               [&](const std::uint32_t(&e)[4]) { consumer.add_product<true>(tokens, stage, e); });
    } else {
      add_keys(tokens, [&](const std::uint32_t(&e)[4]) { consumer.add_whole(stage, e); });
    }
    consumer.tell();
  }

 private:
  template <class Add>
  __device__ __forceinline__ void add_keys(const Traits::TokenInfo& tokens, const Add& add) {
    consumer.add_keys(tokens, params.sums.data != nullptr, params.shares.steps != nullptr,
                      params.weights != nullptr, add);
  }
};

/// The item's steps, each finished in the next: the warpgroups need not be in step.
template <class Work>
__device__ __forceinline__ void walk_steps(Work work, Traits::Shared& shared,
                                           RingPosition<Traits::kSteps>& at) {
  const int steps = Traits::steps_of(shared.item);
  RingPosition<Traits::kSteps> before = at;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    shared.steps.wait_full(at);
    work.begin(at.stage);
    if (step > 0) {
      work.finish(before.stage);
      shared.steps.release(before);
    }
    work.tell(at.stage);
    before = at;
    at.advance();
  }
  work.end();
  work.finish(before.stage);
  shared.steps.release(before);
}

template <bool kStudent>
__device__ __forceinline__ void consume(const Params& params, Traits::Shared& shared) {
  RingPosition<Traits::kSteps> at{};
  RingPosition<Traits::kTurnStages> turn{};
  Consumer::ToldPosition told{};
#pragma unroll 1
  while (mma::cta::take_item(params.pairs, params.work, shared, shared.meeting)) {
    Consumer consumer(shared, told);
    load_keys(params, shared, !kStudent);
    if constexpr (kStudent) {
      walk_steps(StudentWork{params, consumer, shared}, shared, at);
    } else {
      consumer.take_keys();
      walk_steps(LossWork{params, consumer, shared, turn}, shared, at);
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
    for (ptx::Mbarrier& told : shared.told) ptx::mbarrier_init(&told, Traits::kThreads);
    for (ptx::Mbarrier& order : shared.order) ptx::mbarrier_init(&order, Traits::kThreads / 2);
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
