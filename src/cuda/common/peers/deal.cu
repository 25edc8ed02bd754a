// SPDX-License-Identifier: MIT
// Lengths of whole sequences become what this rank's layers read: one CTA a row.
#include "cuda/common/peers/launch.h"
#include "cuda/launch.h"

namespace msa::cuda::common::peers {
namespace {

constexpr int kThreads = 256;

/// Of the blocks here, how many stand before block `end` of the sequence.
__device__ __forceinline__ std::int64_t blocks_before(const DealParams& p, std::int64_t end) {
  const std::int64_t here = p.columns / p.columns_per_block;
  const std::int64_t before = end <= p.rank ? 0 : (end - p.rank + p.ranks - 1) / p.ranks;
  return min(before, here);
}

__global__ void __launch_bounds__(kThreads) deal_kernel(const __grid_constant__ DealParams p) {
  const std::int64_t row = blockIdx.x;
  const std::int64_t size = p.block_size;
  const std::int64_t last = std::int64_t{p.seqlens_k[row]} - 1;  // below 0: the row sees nothing
  const std::int64_t block = last < 0 ? -1 : last / size;
  const std::int64_t before = blocks_before(p, block);
  const bool ends_here = blocks_before(p, block + 1) > before;
  const std::int64_t visible = before * size + (ends_here ? last - block * size + 1 : 0);
  if (threadIdx.x == 0) {
    std::int64_t keys = visible;
    if (p.local_blocks > 0) keys = blocks_before(p, block - p.local_blocks + 1) * size;
    keys -= blocks_before(p, p.init_blocks) * size;
    p.candidates[row] = static_cast<int>(max(keys, std::int64_t{0}));
    p.last_keys[row] = static_cast<int>(visible - 1);
  }
  // First blocks by their number, then the last ones that are none of them.
  const int forced = p.init_blocks + p.local_blocks;
  const std::int64_t late = max(block + 1 - forced, std::int64_t{0});
  for (int slot = threadIdx.x; slot < forced; slot += kThreads) {
    const std::int64_t id = slot < p.init_blocks ? slot : slot + late;
    p.forced[row * forced + slot] = id <= block ? static_cast<int>(id) : -1;
  }
  const std::int64_t page_size = size / p.columns_per_block;
  for (std::int64_t c = threadIdx.x; c < p.columns; c += kThreads) {
    const std::int64_t at = row * p.columns + c;
    p.pages[at] = c * page_size < visible ? p.page_table[at] : 0;
  }
}

}  // namespace

void launch_deal(const DealParams& params, cudaStream_t stream) {
  launch_kernel(
      deal_kernel,
      {.grid = dim3(static_cast<unsigned>(params.rows)), .block = dim3(kThreads), .stream = stream},
      params);
}

}  // namespace msa::cuda::common::peers
