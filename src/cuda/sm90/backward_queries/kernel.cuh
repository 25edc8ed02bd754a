// SPDX-License-Identifier: MIT
// Gradients of queries, rows outermost, dense and over unions of block lists: a persistent CTA an
// SM, one producer warpgroup, two consumer warpgroups. Tiles, lists, scheduler and loader are those
// of sm90/attend. See docs/kernels/backward.md.
#pragma once

#include "cuda/launch.h"
#include "cuda/sm90/attend/loader.cuh"
#include "cuda/sm90/attend/scheduler.cuh"
#include "cuda/sm90/backward_queries/consumer.cuh"
#include "cuda/sm90/backward_queries/launch.h"

namespace msa::cuda::sm90::backward_queries {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    kernel(const __grid_constant__ Params params, const __grid_constant__ Maps maps) {
  extern __shared__ std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(align_shared<1024>(raw));
  if (threadIdx.x == 0) {
    shared.q_ring.init(Traits::kTileReleases);
    for (ptx::Mbarrier& bar : shared.described) ptx::mbarrier_init(&bar, 32);
    ptx::mbarrier_init(&shared.rows_read, Traits::kConsumerWarps);
    shared.k_ring.init(Traits::kConsumerWarps * 32);
    shared.v_ring.init(Traits::kConsumerWarps * 32);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  ptx::griddepcontrol_wait();
  if (params.unwanted != nullptr && *params.unwanted != 0) return;
  const int warpgroup = threadIdx.x >> 7;
  if (warpgroup == Traits::kConsumers) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    const int warp = (threadIdx.x & 127) >> 5;
    if (warp == 0) attend::Loader<Traits>(params, maps, shared).run();
    if (warp == 1) attend::Scheduler<Traits>(params, maps, shared).run();
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    Consumer<Traits>(params, shared, warpgroup).run();
  }
}

template <Walk kWalk>
void launch_instance(const Params& params, const Maps& maps, int ctas, cudaStream_t stream) {
  using Chosen = Traits<kWalk>;
  launch_kernel(kernel<Chosen>,
                {.grid = dim3(static_cast<unsigned>(ctas)),
                 .block = dim3(Chosen::kThreads),
                 .shared_bytes = Chosen::kSharedBytes,
                 .programmatic = true,
                 .stream = stream},
                params, maps);
}

}  // namespace msa::cuda::sm90::backward_queries
