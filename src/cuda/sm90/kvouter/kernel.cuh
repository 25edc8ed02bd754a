// SPDX-License-Identifier: MIT
// The keys-outermost kernel: a persistent CTA an SM, one producer warp, three consumer warpgroups,
// and beside the producer three converter warps where keys and values are codes.
// See docs/kernels/kvouter.md.
#pragma once

#include "cuda/launch.h"
#include "cuda/sm90/kvouter/combine.cuh"
#include "cuda/sm90/kvouter/consumer.cuh"
#include "cuda/sm90/kvouter/converter.cuh"
#include "cuda/sm90/kvouter/launch.h"
#include "cuda/sm90/kvouter/producer.cuh"

namespace msa::cuda::sm90::kvouter {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    kernel(const __grid_constant__ Params params, const __grid_constant__ Maps maps, int chunk) {
  extern __shared__ std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(align_shared<1024>(raw));
  if (threadIdx.x == 0) {
    if constexpr (Traits::kCodes) {
      for (ptx::Mbarrier& bar : shared.codes) ptx::mbarrier_init(&bar, 1);
      shared.kv_ring.init(Traits::kConsumers, Traits::kConverterWarps);
    } else {
      shared.kv_ring.init(Traits::kConsumers);
    }
    shared.q_ring.init(Traits::kConsumers);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  const int num_items = chunk_num_items(params, chunk);
  const int warpgroup = static_cast<int>(threadIdx.x >> 7);
  if (warpgroup == Traits::kConsumers) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    if ((threadIdx.x & 127) < 32)
      Producer<Traits>(params, maps, shared, chunk).run(num_items, &chunk_next_item(params, chunk));
    if constexpr (Traits::kCodes) {
      if ((threadIdx.x & 127) >= 32)
        Converter<Traits>(shared, static_cast<int>(threadIdx.x & 127) / 32 - 1).run();
    }
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    Consumer<Traits>(params, shared, warpgroup, chunk).run();
  }
}

template <Config cfg>
void launch_instance(const Params& params, const Maps& maps, int chunk, int ctas,
                     cudaStream_t stream) {
  using Chosen = Traits<cfg>;
  launch_kernel(kernel<Chosen>,
                {.grid = dim3(static_cast<unsigned>(ctas)),
                 .block = dim3(Chosen::kThreads),
                 .shared_bytes = Chosen::kSharedBytes,
                 .stream = stream},
                params, maps, chunk);
  const int tiles = min(params.chunk_tiles, params.tile_limit - chunk * params.chunk_tiles);
  const std::int64_t pairs =
      static_cast<std::int64_t>(tiles) * params.tokens_per_tile * params.heads_kv;
  launch_kernel(
      combine_kernel<typename Chosen::Item>,
      {.grid = dim3(static_cast<unsigned>(ceil_div(pairs * kCombineParts, kCombineWarps))),
       .block = dim3(kCombineWarps * 32),
       .stream = stream},
      params, chunk);
}

}  // namespace msa::cuda::sm90::kvouter
