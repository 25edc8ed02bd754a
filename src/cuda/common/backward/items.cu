// SPDX-License-Identifier: MIT
// A thread a tile of keys and a head. Items stand in the order in which threads come: what each
// adds up lies in a place of its own, so that no result depends on it. Parts of a tile's sums
// follow each other: heads that share it, and of each its tokens, ascending. Where a CTA has few
// items, long ones are taken before short ones: all then end together.
#include <algorithm>

#include "cuda/common/backward/launch.h"
#include "cuda/common/backward/tiles.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::backward {
namespace {

constexpr int kItemThreads = 128;
constexpr std::int64_t kMaxItemCtas = 1024;
constexpr int kOrderThreads = 1024;
constexpr int kLengths = 32;  // that are told apart
static_assert(kMostHeadsAtOnce <= kItemThreads, "a thread for each head of a tile");

__device__ __forceinline__ int items_of(const Work& work, const Span& tokens) {
  return static_cast<int>((tokens.end - tokens.begin + work.item_tokens - 1) / work.item_tokens);
}

/// Of `heads` heads that share a tile, by one thread; tokens[i] are those of first_head + i.
/// Whether there is room is a matter of lengths at fault alone: planning counts what there can be.
__device__ __forceinline__ void write_items(const Work& work, int first_head, int heads,
                                            const TilePlace& place, const Span* tokens) {
  int items = 0;
  for (int i = 0; i < heads; ++i) items += items_of(work, tokens[i]);
  if (items == 0) return;
  const bool splits = items > 1 && work.splits != nullptr;
  int part = -1;
  if (splits) {
    part = atomicAdd(&work.counters->parts, items);
    if (part + items > work.max_parts) return;
    work.splits[atomicAdd(&work.counters->splits, 1)] = {.head = first_head,
                                                         .request = place.request,
                                                         .tile = place.tile,
                                                         .first_part = part,
                                                         .parts = items};
  }
  int number = atomicAdd(&work.counters->items, items);
  for (int i = 0; i < heads; ++i) {
    for (std::int64_t begin = tokens[i].begin; begin < tokens[i].end && number < work.max_items;
         begin += work.item_tokens) {
      work.items[number++] = {
          .head = first_head + i,
          .request = place.request,
          .tile = place.tile,
          .begin = static_cast<int>(begin),
          .count = static_cast<int>(min(std::int64_t{work.item_tokens}, tokens[i].end - begin)),
          .part = splits ? part++ : -1};
    }
  }
}

__global__ void __launch_bounds__(kItemThreads)
    items_kernel(const __grid_constant__ Pairs p, const __grid_constant__ Work work) {
  if (work.wanted != nullptr && *work.wanted == 0) return;
  __shared__ Span tokens[kItemThreads];
  const int heads = p.heads_at_once;  // threads of a tile
  const int first_head = static_cast<int>(blockIdx.y) * p.shared_heads + p.turn;
  const int own = static_cast<int>(threadIdx.x) % heads;
  const int tiles_at_once = kItemThreads / heads;
  const std::int64_t tiles = total_tiles(p);
  for (std::int64_t begin = std::int64_t{blockIdx.x} * tiles_at_once; begin < tiles;
       begin += std::int64_t{gridDim.x} * tiles_at_once) {
    const std::int64_t tile = begin + static_cast<int>(threadIdx.x) / heads;
    const bool there = static_cast<int>(threadIdx.x) < tiles_at_once * heads && tile < tiles;
    TilePlace place{};
    if (there) {
      place = place_of_tile(p, tile);
      tokens[threadIdx.x] = tokens_of_tile(p, first_head + own, place);
    }
    __syncthreads();
    if (there && own == 0) write_items(work, first_head, heads, place, tokens + threadIdx.x);
    __syncthreads();
  }
}

/// 0: the longest.
__device__ __forceinline__ int length_of(const Work& work, int item) {
  const std::int64_t missing = work.item_tokens - work.items[item].count;
  return static_cast<int>(min(missing * kLengths / work.item_tokens, kLengths - std::int64_t{1}));
}

/// A counting sort by one CTA.
__global__ void __launch_bounds__(kOrderThreads) order_kernel(const __grid_constant__ Work work) {
  if (work.wanted != nullptr && *work.wanted == 0) return;
  __shared__ int begins[kLengths];
  const auto thread = static_cast<int>(threadIdx.x);
  const int items = min(work.counters->items, work.max_items);
  if (thread < kLengths) begins[thread] = 0;
  __syncthreads();
  for (int i = thread; i < items; i += kOrderThreads) atomicAdd(&begins[length_of(work, i)], 1);
  __syncthreads();
  static_assert(kLengths == 32, "a lane each");
  if (thread < kLengths) {
    const int own = begins[thread];
    begins[thread] = warp::inclusive_sum(own, thread) - own;
  }
  __syncthreads();
  for (int i = thread; i < items; i += kOrderThreads)
    work.order[atomicAdd(&begins[length_of(work, i)], 1)] = i;
}

}  // namespace

void launch_items(const Pairs& pairs, const Work& work, std::int64_t max_tiles,
                  cudaStream_t stream) {
  MSA_CUDA_CHECK(cudaMemsetAsync(work.counters, 0, sizeof(Counters), stream));
  const std::int64_t ctas = ceil_div(max_tiles, kItemThreads / pairs.heads_at_once);
  launch_kernel(items_kernel,
                {.grid = dim3(static_cast<unsigned>(std::min(ctas, kMaxItemCtas)),
                              static_cast<unsigned>(pairs.heads_kv / pairs.shared_heads)),
                 .block = dim3(kItemThreads),
                 .stream = stream},
                pairs, work);
  if (work.order != nullptr)
    launch_kernel(order_kernel, {.block = dim3(kOrderThreads), .stream = stream}, work);
}

}  // namespace msa::cuda::common::backward
