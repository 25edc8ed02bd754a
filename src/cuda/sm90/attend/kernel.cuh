// SPDX-License-Identifier: MIT
// The attention kernel, dense and over unions of block lists: a persistent CTA an SM, one producer
// warpgroup, two consumer warpgroups, and a converter where keys and values are codes. See
// docs/kernels/attend.md.
#pragma once

#include "cuda/launch.h"
#include "cuda/sm90/attend/consumer.cuh"
#include "cuda/sm90/attend/converter.cuh"
#include "cuda/sm90/attend/launch.h"
#include "cuda/sm90/attend/loader.cuh"
#include "cuda/sm90/attend/scheduler.cuh"

namespace msa::cuda::sm90::attend {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    kernel(const __grid_constant__ Params params, const __grid_constant__ Maps maps) {
  extern __shared__ std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(align_shared<1024>(raw));
  if (threadIdx.x == 0) {
    shared.q_ring.init(Traits::kTileReleases);
    for (ptx::Mbarrier& bar : shared.described) ptx::mbarrier_init(&bar, 32);
    if constexpr (Traits::kCodes) {
      for (ptx::Mbarrier& bar : shared.k_codes) ptx::mbarrier_init(&bar, 1);
      for (ptx::Mbarrier& bar : shared.v_codes) ptx::mbarrier_init(&bar, 1);
      constexpr int kFillings = Traits::kConverterWarps + 32;  // and the loader's lanes
      shared.k_ring.init(Traits::kConsumerWarps * 32, kFillings);
      shared.v_ring.init(Traits::kConsumerWarps * 32, kFillings);
    } else {
      shared.k_ring.init(Traits::kConsumerWarps);
      shared.v_ring.init(Traits::kConsumerWarps);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const int warpgroup = threadIdx.x >> 7;
  if (warpgroup == Traits::kConsumers) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    const int warp = (threadIdx.x & 127) >> 5;
    if (warp == 0) Loader<Traits>(params, maps, shared).run();
    if (warp == 1) Scheduler<Traits>(params, maps, shared).run();
  } else if (Traits::kCodes && warpgroup == Traits::kConsumers + 1) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    if constexpr (Traits::kCodes) Converter<Traits>(shared).run();
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    Consumer<Traits>(params, shared, warpgroup).run();
  }
}

template <Config cfg>
void launch_instance(const Params& params, const Maps& maps, int ctas, cudaStream_t stream) {
  using Chosen = Traits<cfg>;
  launch_kernel(kernel<Chosen>,
                {.grid = dim3(ctas),
                 .block = dim3(Chosen::kThreads),
                 .shared_bytes = Chosen::kSharedBytes,
                 .programmatic = true,
                 .stream = stream},
                params, maps);
}

}  // namespace msa::cuda::sm90::attend
