// SPDX-License-Identifier: MIT
// The inverse of the block lists, all chunks of a launch at once: count, scan, scatter. The order
// of queries inside a block's list is left open: rows of a tile do not touch each other, and every
// partial has a slot of its own, so the result has the same bits in any order.
#include <algorithm>

#include "cuda/common/scan.cuh"
#include "cuda/launch.h"
#include "cuda/sm90/kvouter/launch.h"
#include "cuda/sm90/kvouter/lists.cuh"

namespace msa::cuda::sm90::kvouter {
namespace {

constexpr int kWarps = 4;
constexpr int kTileTokens = attend::kTileRows / kGroup;  // of a union tile
constexpr int kScanThreads = 1024;
constexpr int kScanCtas = 16;  // of a chunk

/// Calls visit(chunk, row of its inverse, entry) for each slot that counts; a lane is a place in
/// the list.
template <class Visit>
__device__ __forceinline__ void for_each_slot(const Params& p, const Visit& visit) {
  const int slot = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x / 32);
  const int head = static_cast<int>(blockIdx.y);
  if (!takes(p, head, slot)) return;
  const common::prologue::TileRecord tile = p.tiles[p.tile_begin + slot];
  const RequestRecord request = p.requests[tile.request];
  const int tokens = min(request.seqlen_q - tile.first, p.tokens_per_tile);
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int chunk = slot / p.chunk_tiles;
  const int first_token = slot % p.chunk_tiles * p.tokens_per_tile;
  // All lists before the first visit: behind an atomic every read waits for the one before.
  int blocks[kTileTokens];
#pragma unroll
  for (int token = 0; token < kTileTokens; ++token) {
    blocks[token] =
        token < tokens
            ? slot_block(p, request, static_cast<std::int64_t>(tile.first) + token, head, lane)
            : -1;
  }
  const std::int64_t first_row = inverse_row(p, head, tile.request, 0);
#pragma unroll
  for (int token = 0; token < kTileTokens; ++token) {
    if (blocks[token] < 0) continue;
    visit(chunk, first_row + blocks[token],
          Entry{static_cast<int>(request.q_begin) + tile.first + token,
                static_cast<std::uint32_t>(((first_token + token) * p.heads_kv + head) * p.lists.k +
                                           lane)});
  }
}

__global__ void __launch_bounds__(kWarps * 32) count_kernel(const __grid_constant__ Params p) {
  const int stride = counter_stride(p);
  for_each_slot(p, [&](int chunk, std::int64_t row, const Entry&) {
    atomicAdd(chunk_counts(p, chunk) + row * stride, 1);
  });
}

__global__ void __launch_bounds__(kWarps * 32) scatter_kernel(const __grid_constant__ Params p) {
  const int stride = counter_stride(p);
  for_each_slot(p, [&](int chunk, std::int64_t row, const Entry& entry) {
    chunk_entries(p, chunk)[atomicAdd(chunk_cursors(p, chunk) + row * stride, 1)] = entry;
  });
}

__global__ void __launch_bounds__(kScanThreads) clear_kernel(const __grid_constant__ Params p) {
  int* counts = chunk_counts(p, static_cast<int>(blockIdx.y));
  const int stride = counter_stride(p);
  const std::int64_t first = std::int64_t{blockIdx.x} * kScanThreads + threadIdx.x;
  if (first < kChunkCounters) counts[first - kChunkCounters] = 0;
  for (std::int64_t row = first; row < num_rows(p); row += std::int64_t{gridDim.x} * kScanThreads) {
    counts[row * stride] = 0;
  }
}

/// The request that owns block `block` of all requests' blocks.
__device__ __forceinline__ int request_of(const Params& p, std::int64_t block) {
  int low = 0;
  int high = p.batch.batch - 1;
  while (low < high) {  // last request that begins at the block or before
    const int middle = (low + high + 1) / 2;
    if (p.first_blocks[middle] <= block) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

/// A row's queries in the low half, its work items in the high half, so that one sum is both.
__device__ __forceinline__ std::int64_t pack_row(int count) {
  return count + (static_cast<std::int64_t>((count + kItemTokens - 1) / kItemTokens) << 32);
}
__device__ __forceinline__ int queries_of(std::int64_t packed) { return static_cast<int>(packed); }
__device__ __forceinline__ int items_of(std::int64_t packed) {
  return static_cast<int>(packed >> 32);
}

/// A few CTAs a chunk: counts become cursors, every row's queries work items of at most
/// kItemTokens. A CTA adds up the rows before its own again, rather than wait for another one.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(const __grid_constant__ Params p) {
  const int chunk = static_cast<int>(blockIdx.y);
  const int* counts = chunk_counts(p, chunk);
  int* cursors = chunk_cursors(p, chunk);
  WorkItem* items = chunk_items(p, chunk);
  const std::int64_t rows = num_rows(p);
  const int stride = counter_stride(p);
  const std::int64_t share = ceil_div(ceil_div(rows, gridDim.x), kScanThreads) * kScanThreads;
  const std::int64_t begin = min(share * blockIdx.x, rows);
  const std::int64_t end = min(begin + share, rows);
  if (begin == end) return;
  std::int64_t mine = 0;
  for (std::int64_t row = threadIdx.x; row < begin; row += kScanThreads)
    mine += pack_row(counts[row * stride]);
  std::int64_t before = 0;
  common::cta::exclusive_sum<kScanThreads>(mine, before);
  const std::int64_t blocks = total_blocks(p);
  for (std::int64_t first = begin; first < end; first += kScanThreads) {
    const std::int64_t row = first + threadIdx.x;
    const int count = row < end ? counts[row * stride] : 0;
    std::int64_t total = 0;
    const std::int64_t at =
        before + common::cta::exclusive_sum<kScanThreads>(pack_row(count), total);
    before += total;
    if (row >= end) continue;
    cursors[row * stride] = queries_of(at);
    if (count == 0) continue;
    const int head = static_cast<int>(row / blocks);
    const std::int64_t block = row - head * blocks;
    const int request = request_of(p, block);
    for (int done = 0, item = items_of(at); done < count; done += kItemTokens, ++item) {
      items[item] = {.head = head,
                     .request = request,
                     .block = static_cast<int>(block - p.first_blocks[request]),
                     .begin = queries_of(at) + done,
                     .count = min(kItemTokens, count - done)};
    }
  }
  if (end == rows && threadIdx.x == 0) chunk_num_items(p, chunk) = items_of(before);
}

}  // namespace

void launch_invert(const Params& params, cudaStream_t stream) {
  constexpr int kClearCtas = 32;  // of a chunk
  const auto chunks = static_cast<unsigned>(ceil_div(params.tile_limit, params.chunk_tiles));
  const LaunchConfig slots{.grid = dim3(static_cast<unsigned>(ceil_div(params.tile_limit, kWarps)),
                                        static_cast<unsigned>(params.heads_kv)),
                           .block = dim3(kWarps * 32),
                           .stream = stream};
  const auto rows_grid = [&](int ctas) {
    const auto most = static_cast<unsigned>(ceil_div(params.max_rows, kScanThreads));
    return LaunchConfig{.grid = dim3(std::clamp(most, 1u, static_cast<unsigned>(ctas)), chunks),
                        .block = dim3(kScanThreads),
                        .stream = stream};
  };
  launch_kernel(clear_kernel, rows_grid(kClearCtas), params);
  launch_kernel(count_kernel, slots, params);
  launch_kernel(scan_kernel, rows_grid(kScanCtas), params);
  launch_kernel(scatter_kernel, slots, params);
}

}  // namespace msa::cuda::sm90::kvouter
