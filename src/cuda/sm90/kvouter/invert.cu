// SPDX-License-Identifier: MIT
// The inverse of the block lists, all chunks of a launch at once: count, scan, scatter. The order
// of queries inside a block's list is left open: rows of a tile do not touch each other, and every
// partial has a slot of its own, so the result has the same bits in any order.
#include "cuda/launch.h"
#include "cuda/sm90/kvouter/invert.h"
#include "cuda/sm90/kvouter/lists.cuh"

namespace msa::cuda::sm90::kvouter {
namespace {

constexpr int kWarps = 4;
constexpr int kScanThreads = 1024;

/// Calls visit(chunk, row of its inverse, entry) for each slot that counts; a lane is a place in
/// the list.
template <class Visit>
__device__ __forceinline__ void for_each_slot(const Params& p, const Visit& visit) {
  const int slot = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x / 32);
  const int head = static_cast<int>(blockIdx.y);
  if (!takes(p, head, slot)) return;
  const prologue::TileRecord tile = p.tiles[p.tile_begin + slot];
  const RequestRecord request = p.requests[tile.request];
  const int tokens = min(request.seqlen_q - tile.first, p.tokens_per_tile);
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int chunk = slot / p.chunk_tiles;
  const int first_token = slot % p.chunk_tiles * p.tokens_per_tile;
  for (int token = 0; token < tokens; ++token) {
    const int block =
        slot_block(p, request, static_cast<std::int64_t>(tile.first) + token, head, lane);
    if (block < 0) continue;
    visit(chunk, inverse_row(p, head, tile.request, block),
          Entry{static_cast<int>(request.q_begin) + tile.first + token,
                static_cast<std::uint32_t>(((first_token + token) * p.heads_kv + head) * p.topk +
                                           lane)});
  }
}

__global__ void __launch_bounds__(kWarps * 32) count_kernel(const __grid_constant__ Params p) {
  for_each_slot(p, [&](int chunk, std::int64_t row, const Entry&) {
    atomicAdd(chunk_counts(p, chunk) + row, 1);
  });
}

__global__ void __launch_bounds__(kWarps * 32) scatter_kernel(const __grid_constant__ Params p) {
  for_each_slot(p, [&](int chunk, std::int64_t row, const Entry& entry) {
    chunk_entries(p, chunk)[atomicAdd(chunk_counts(p, chunk) + row, 1)] = entry;
  });
}

/// Exclusive sums over the CTA of two values a thread.
__device__ __forceinline__ int2 exclusive_sums(int2 mine) {
  __shared__ int2 warps[kScanThreads / 32];
  const int lane = static_cast<int>(threadIdx.x & 31);
  int2 sum = mine;
  for (int step = 1; step < 32; step *= 2) {
    const int x = __shfl_up_sync(0xffffffffu, sum.x, step);
    const int y = __shfl_up_sync(0xffffffffu, sum.y, step);
    if (lane >= step) sum = {sum.x + x, sum.y + y};
  }
  if (lane == 31) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  int2 before{0, 0};
  for (unsigned w = 0; w < threadIdx.x / 32; ++w)
    before = {before.x + warps[w].x, before.y + warps[w].y};
  return {before.x + sum.x - mine.x, before.y + sum.y - mine.y};
}

/// A CTA a chunk: counts become cursors; every row's queries become work items of at most
/// kItemTokens.
__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(const __grid_constant__ Params p, int rows) {
  const int chunk = static_cast<int>(blockIdx.x);
  int* counts = chunk_counts(p, chunk);
  WorkItem* items = chunk_items(p, chunk);
  const int share = (rows + kScanThreads - 1) / kScanThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * share, rows);
  const int end = min(begin + share, rows);
  int2 mine{0, 0};
  for (int row = begin; row < end; ++row) {
    const int count = counts[row];
    mine = {mine.x + count, mine.y + (count + kItemTokens - 1) / kItemTokens};
  }
  int2 at = exclusive_sums(mine);
  for (int row = begin; row < end; ++row) {
    const int count = counts[row];
    const int block = row % p.max_blocks;
    const int rest = row / p.max_blocks;
    for (int first = 0; first < count; first += kItemTokens) {
      items[at.y++] = {.head = rest / p.batch.batch,
                       .request = rest % p.batch.batch,
                       .block = block,
                       .begin = at.x + first,
                       .count = min(kItemTokens, count - first)};
    }
    counts[row] = at.x;
    at.x += count;
  }
  if (threadIdx.x == kScanThreads - 1) counts[rows] = at.y;
}

}  // namespace

void launch_invert(const Params& params, cudaStream_t stream) {
  const std::int64_t rows = inverse_rows(params.batch.batch, params.heads_kv, params.max_blocks);
  const std::int64_t chunks = ceil_div(params.tile_limit, params.chunk_tiles);
  MSA_CUDA_CHECK(cudaMemsetAsync(
      params.counts, 0, static_cast<std::size_t>(chunks * (rows + kChunkCounters)) * sizeof(int),
      stream));
  const LaunchConfig slots{.grid = dim3(static_cast<unsigned>(ceil_div(params.tile_limit, kWarps)),
                                        static_cast<unsigned>(params.heads_kv)),
                           .block = dim3(kWarps * 32),
                           .stream = stream};
  launch_kernel(count_kernel, slots, params);
  launch_kernel(
      scan_kernel,
      {.grid = dim3(static_cast<unsigned>(chunks)), .block = dim3(kScanThreads), .stream = stream},
      params, static_cast<int>(rows));
  launch_kernel(scatter_kernel, slots, params);
}

}  // namespace msa::cuda::sm90::kvouter
