// SPDX-License-Identifier: MIT
// Block scores: persistent CTAs; an item is one tile of query rows and one span of key tiles. See
// docs/kernels/select.md.
#pragma once

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/sm90/select/consumer.cuh"
#include "cuda/sm90/select/launch.h"
#include "cuda/sm90/select/producer.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace msa::cuda::sm90::select {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    kernel(const __grid_constant__ Params p, const __grid_constant__ CUtensorMap key_map) {
  extern __shared__ std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(align_shared<1024>(raw));
  if (threadIdx.x == 0) {
    shared.ring.init(4 * Traits::kWarpgroups);
    shared.work_ring.init(32 * Traits::kReaders);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x / 32), 0);
  const int warpgroup = warp / 4;
  if (warpgroup == Traits::kWarpgroups) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    if (warp % 4 == 0) {
      Producer<Traits>(p, &key_map, shared).run();
    } else if (!Traits::kConfig.scratch && warp % 4 >= 2) {
      Filler<Traits>(p, shared).run();
    }
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    Consumer<Traits>(p, shared, warpgroup).run();
  }
}

template <Config cfg>
void launch_instance(const Params& params, const CUtensorMap& key_map, int ctas,
                     cudaStream_t stream) {
  using Chosen = Traits<cfg>;
  const std::int64_t items = params.num_tiles * params.spans * params.groups;
  launch_kernel(kernel<Chosen>,
                {.grid = dim3(static_cast<unsigned>(std::min<std::int64_t>(items, ctas))),
                 .block = Chosen::kThreads,
                 .shared_bytes = Chosen::kSharedBytes,
                 .programmatic = true,
                 .stream = stream},
                params, key_map);
}

}  // namespace msa::cuda::sm90::select
