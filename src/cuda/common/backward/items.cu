// SPDX-License-Identifier: MIT
// A thread a tile of keys. Items stand in the order in which threads come: what each adds up lies
// in a place of its own, so that no result depends on it.
#include <algorithm>

#include "cuda/common/backward/launch.h"
#include "cuda/common/backward/tiles.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::backward {
namespace {

constexpr int kItemThreads = 128;
constexpr std::int64_t kMaxItemCtas = 1024;

/// Whether there is room is a matter of lengths at fault alone: planning counts what there can be.
__device__ __forceinline__ void write_items(const Work& work, int head, const TilePlace& place,
                                            const Span& tokens) {
  const auto count = static_cast<int>(tokens.end - tokens.begin);
  const int items = (count + work.item_tokens - 1) / work.item_tokens;
  const bool splits = items > 1 && work.splits != nullptr;
  int part = -1;
  if (splits) {
    part = atomicAdd(&work.counters->parts, items);
    if (part + items > work.max_parts) return;
    work.splits[atomicAdd(&work.counters->splits, 1)] = {.head = head,
                                                         .request = place.request,
                                                         .tile = place.tile,
                                                         .first_part = part,
                                                         .parts = items};
  }
  const int first = atomicAdd(&work.counters->items, items);
  for (int i = 0; i < items && first + i < work.max_items; ++i) {
    const int done = i * work.item_tokens;
    work.items[first + i] = {.head = head,
                             .request = place.request,
                             .tile = place.tile,
                             .begin = static_cast<int>(tokens.begin) + done,
                             .count = min(work.item_tokens, count - done),
                             .part = splits ? part + i : -1};
  }
}

__global__ void __launch_bounds__(kItemThreads)
    items_kernel(const __grid_constant__ Pairs p, const __grid_constant__ Work work) {
  const std::int64_t tiles = total_tiles(p);
  const std::int64_t step = std::int64_t{gridDim.x} * kItemThreads;
  const int head = static_cast<int>(blockIdx.y) * p.shared_heads + p.turn;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kItemThreads + threadIdx.x; i < tiles;
       i += step) {
    const TilePlace place = place_of_tile(p, i);
    const Span tokens = tokens_of_tile(p, head, place);
    if (tokens.end > tokens.begin) write_items(work, head, place, tokens);
  }
}

}  // namespace

void launch_items(const Pairs& pairs, const Work& work, std::int64_t max_tiles,
                  cudaStream_t stream) {
  MSA_CUDA_CHECK(cudaMemsetAsync(work.counters, 0, sizeof(Counters), stream));
  const std::int64_t ctas = ceil_div(max_tiles, kItemThreads);
  launch_kernel(items_kernel,
                {.grid = dim3(static_cast<unsigned>(std::min(ctas, kMaxItemCtas)),
                              static_cast<unsigned>(pairs.heads_kv / pairs.shared_heads)),
                 .block = dim3(kItemThreads),
                 .stream = stream},
                pairs, work);
}

}  // namespace msa::cuda::common::backward
