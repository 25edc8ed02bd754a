// SPDX-License-Identifier: MIT
#include "cuda/common/decode/launch.h"

#include <algorithm>

#include "cuda/common/decode/select_kernel.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::decode {

void launch_fill(const Slots<float>& scores, std::int64_t total, int heads, std::int64_t blocks,
                 cudaStream_t stream) {
  const std::int64_t ctas = ceil_div(total * heads * blocks, kSelectThreads);
  constexpr std::int64_t kMostCtas = 1024;
  launch_kernel(fill_kernel,
                {.grid = dim3(static_cast<unsigned>(std::min(ctas, kMostCtas))),
                 .block = dim3(kSelectThreads),
                 .stream = stream},
                scores, total, heads, blocks);
}

void launch_select(const SelectParams& params, cudaStream_t stream) {
  launch_kernel(
      select_kernel,
      {.grid = dim3(static_cast<unsigned>(params.heads),
                    static_cast<unsigned>(std::max(params.batch.batch, 1) * params.token_slots)),
       .block = dim3(kSelectThreads),
       .shared_bytes = static_cast<std::size_t>(
           select_scratch_bytes(params.topk, params.max_blocks, params.lanes)),
       .most_shared_bytes = kMostSelectScratch,
       .programmatic = true,
       .stream = stream},
      params);
}

}  // namespace msa::cuda::common::decode
