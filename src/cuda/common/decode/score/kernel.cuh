// SPDX-License-Identifier: MIT
// Decode scoring: one CTA an SM streams the index keys of the whole batch, whatever the lengths.
// The last warp, or one of each team, feeds a ring with steps of 128 keys: first a fixed share,
// then what it claims from a counter, as SMs do not read equally fast.
#pragma once

#include "cuda/common/decode/score/consumer.cuh"
#include "cuda/common/decode/score/producer.cuh"
#include "cuda/common/ptx/shared.cuh"
#include "cuda/common/tile/align.cuh"
#include "cuda/common/tile/pipeline.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::decode {

template <class Traits>
__global__ void __launch_bounds__(Traits::kBoundThreads, Traits::kBoundCtas)
    score_kernel(const __grid_constant__ ScoreParamsOf<typename Traits::Engine::Keys> p) {
  using Engine = typename Traits::Engine;
  extern __shared__ std::uint8_t raw[];
  std::uint8_t* stages = ptx::hold_shared(align_shared<128>(raw));
  auto& shared =
      *reinterpret_cast<ScoreShared<Traits>*>(stages + Traits::kStages * Traits::kStageBytes);
  ptx::griddepcontrol_launch_dependents();
  if (threadIdx.x == 0) {
    Engine::prefetch(p.keys);
    // Those of keys, and those of the lanes that copy scales or bounds.
    shared.ring.init(Traits::kReleases,
                     Engine::kFillings + (arrives_with_scales<Traits>(p) ? 32 : 0));
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (warp < Traits::kConsumers) return ScoreConsumer<Traits>(p, shared, stages, warp, lane).run();
  ScoreProducer<Traits>(p, shared, stages, warp - Traits::kConsumers, lane).run();
}

template <class Traits>
void launch_score_kernel(const ScoreParamsOf<typename Traits::Engine::Keys>& params,
                         cudaStream_t stream) {
  launch_kernel(
      score_kernel<Traits>,
      {.grid = dim3(static_cast<unsigned>(params.ctas), static_cast<unsigned>(params.heads_k)),
       .block = dim3(Traits::kThreads),
       .shared_bytes = static_cast<std::size_t>(score_shared_bytes<Traits>()),
       .programmatic = true,
       .stream = stream},
      params);
}

}  // namespace msa::cuda::common::decode
