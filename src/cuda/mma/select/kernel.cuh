// SPDX-License-Identifier: MIT
// Block scores: persistent CTAs; an item is one tile of query rows and one span of key tiles. See
// docs/kernels/mma-select.md.
#pragma once

#include <algorithm>

#include "cuda/common/tile/align.cuh"
#include "cuda/launch.h"
#include "cuda/mma/select/consumer.cuh"
#include "cuda/mma/select/launch.h"
#include "cuda/mma/select/producer.cuh"

namespace msa::cuda::mma::select {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, kCtasPerSm)
    kernel(const __grid_constant__ Params p) {
  extern __shared__ std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(common::align_shared<128>(raw));
  if (threadIdx.x == 0) {
    shared.ring.init(Traits::kReleases, Traits::kFillings);
    shared.work_ring.init(Traits::kReleases);
  }
  __syncthreads();
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x / 32), 0);
  if (warp < Traits::kConsumers) return Consumer<Traits>(p, shared, warp).run();
  Producer<Traits>(p, shared).run();
}

template <Config cfg>
void launch_instance(const Params& params, int ctas, cudaStream_t stream) {
  using Chosen = Traits<cfg>;
  const std::int64_t items = params.num_tiles * params.spans * params.groups;
  launch_kernel(kernel<Chosen>,
                {.grid = dim3(static_cast<unsigned>(std::min<std::int64_t>(items, ctas))),
                 .block = Chosen::kThreads,
                 .shared_bytes = Chosen::kSharedBytes,
                 .programmatic = true,
                 .stream = stream},
                params);
}

}  // namespace msa::cuda::mma::select
