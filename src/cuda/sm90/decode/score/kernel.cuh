// SPDX-License-Identifier: MIT
// Decode scoring: one CTA an SM streams the index keys of the whole batch, whatever the lengths.
// Warp 4 feeds a ring with steps of 128 keys: first a fixed share, then what it claims from a
// counter, as SMs do not read equally fast.
#pragma once

#include "cuda/launch.h"
#include "cuda/sm90/decode/score/consumer.cuh"
#include "cuda/sm90/decode/score/producer.cuh"
#include "cuda/sm90/tile/align.cuh"

namespace msa::cuda::sm90::decode {

template <class Traits>
__global__ void __launch_bounds__(Traits::kBoundThreads, Traits::kBoundCtas)
    score_kernel(const __grid_constant__ ScoreParams p) {
  extern __shared__ std::uint8_t raw[];
  std::uint8_t* stages = align_shared<128>(raw);
  auto& shared =
      *reinterpret_cast<ScoreShared<Traits>*>(stages + Traits::kStages * Traits::kStageBytes);
  ptx::griddepcontrol_launch_dependents();
  if (threadIdx.x == 0) {
    ptx::prefetch_tensormap(&p.k_map);
    // The copy engine's arrival, and those of the lanes that copy scales or bounds.
    shared.ring.init(Traits::kReleases, arrives_with_scales<Traits>(p) ? 33 : 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (warp < Traits::kConsumers) return ScoreConsumer<Traits>(p, shared, stages, warp, lane).run();
  ScoreProducer<Traits>(p, shared, stages, lane).run();
}

template <ScoreConfig cfg>
void launch_score_instance(const ScoreParams& params, cudaStream_t stream) {
  using Chosen = ScoreTraits<cfg>;
  launch_kernel(
      score_kernel<Chosen>,
      {.grid = dim3(static_cast<unsigned>(params.ctas), static_cast<unsigned>(params.heads_k)),
       .block = dim3(Chosen::kThreads),
       .shared_bytes = static_cast<std::size_t>(score_shared_bytes<Chosen>()),
       .programmatic = true,
       .stream = stream},
      params);
}

}  // namespace msa::cuda::sm90::decode
