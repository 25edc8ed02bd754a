// SPDX-License-Identifier: MIT
// A stable counting sort. Every tile of queries counts its blocks; sums over the tiles of a request
// say where each tile's queries begin inside a block's list, sums over the blocks where each list
// begins; then every tile places its queries in order. Integer sums alone: the same bits every
// time. See docs/kernels/invert.md.
#include <algorithm>

#include "cuda/common/invert/launch.h"
#include "cuda/common/lists.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/scan.cuh"
#include "cuda/geometry.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::invert {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 256;
constexpr int kSumWarps = 32;
constexpr int kScanThreads = 1024;
constexpr std::int64_t kMaxTailCtas = 256;  // of a head: the tail is mostly short
constexpr int kTilesAtOnce = 16;
constexpr int kMinTokens = 32;
constexpr int kMaxTokens = 1 << 30;
constexpr std::int64_t kCounters = std::int64_t{1} << 26;  // 256 MiB: tiles of 512 at a million

__device__ __forceinline__ int& entry(const HeadRows& rows, int head, std::int64_t i) {
  return rows.data[head * rows.stride_h + i * rows.stride_i];
}

__device__ __forceinline__ int* counts_of(const Params& p, int tile, int head) {
  return p.counts + (static_cast<std::int64_t>(tile) * p.heads + head) * p.max_blocks;
}

/// A warp's tile: visit as in warp::ListWalk, tokens of the tile.
template <class Visit>
__device__ __forceinline__ void for_each_listed(const Params& p, const RequestRecord& request,
                                                const prologue::TileRecord& tile, int head,
                                                const Visit& visit) {
  const int block_size = p.front.batch.block_size;
  const ListReader reader(request, block_size, ceil_div(request.seqlen_k, block_size));
  const int tokens = min(request.seqlen_q - tile.first, p.front.tiles[0].tokens);
  const warp::ListWalk walk(p.lists, request.q_begin + tile.first, tokens, head,
                            static_cast<int>(threadIdx.x % 32));
  walk.run([&](int) { return reader; }, visit);
}

/// The tile of this warp; false: none, or rows of padding.
__device__ __forceinline__ bool find_tile(const Params& p, int& index, prologue::TileRecord& tile) {
  index = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32);
  if (index >= *p.front.tiles[0].count) return false;
  tile = p.front.tiles[0].records[index];
  return tile.request >= 0;
}

__global__ void __launch_bounds__(kWarps * 32) count_kernel(const __grid_constant__ Params p) {
  int index;
  prologue::TileRecord tile;
  if (!find_tile(p, index, tile)) return;
  const int head = static_cast<int>(blockIdx.y);
  int* counts = counts_of(p, index, head);
  for_each_listed(p, p.front.requests[tile.request], tile, head,
                  [&](int token, int, const ListedBlock& listed) {
                    if (listed.fault) {
                      report(p.front.batch.status, tile.request, tile.first + std::int64_t{token},
                             FaultKind::BlockId);
                    }
                    if (listed.block >= 0) atomicAdd(counts + listed.block, 1);
                  });
}

struct TileSpan {
  int begin;
  int end;
};

/// Sum of the counts of one block in a warp's tiles, and `before`. kWrites: counts become sums over
/// the tiles before. Read in batches, as every load behind a store waits for the value in front of
/// it.
template <bool kWrites>
__device__ __forceinline__ unsigned sum_tiles(const Params& p, const TileSpan& tiles, int head,
                                              int block, unsigned before) {
  unsigned sum = before;
  for (int tile = tiles.begin; tile < tiles.end; tile += kTilesAtOnce) {
    unsigned counts[kTilesAtOnce];
#pragma unroll
    for (int i = 0; i < kTilesAtOnce; ++i) {
      counts[i] = 0;
      if (tile + i < tiles.end)
        counts[i] = static_cast<unsigned>(counts_of(p, tile + i, head)[block]);
    }
#pragma unroll
    for (int i = 0; i < kTilesAtOnce; ++i) {
      if (kWrites && tile + i < tiles.end)
        counts_of(p, tile + i, head)[block] = static_cast<int>(sum);
      sum += counts[i];
    }
  }
  return sum;
}

/// The tiles of a request, in equal parts.
__device__ __forceinline__ TileSpan tiles_of_warp(const Params& p, int b, int warp) {
  const int first = p.front.first_tiles[b];
  const auto tiles =
      static_cast<int>(ceil_div(p.front.requests[b].seqlen_q, p.front.tiles[0].tokens));
  const int end = min(first + tiles, *p.front.tiles[0].count);
  const int own = (max(end - first, 0) + kSumWarps - 1) / kSumWarps;
  return {min(first + warp * own, end), min(first + (warp + 1) * own, end)};
}

/// A lane a block, a warp some neighbouring tiles of it. row_ptr holds the size of each list.
__global__ void __launch_bounds__(kSumWarps * 32)
    sum_tiles_kernel(const __grid_constant__ Params p) {
  __shared__ unsigned sums[kSumWarps][32];
  const int head = static_cast<int>(blockIdx.z);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int first_block = static_cast<int>(blockIdx.x * 32);
  const int block = first_block + lane;
  for (int b = static_cast<int>(blockIdx.y); b < p.front.batch.batch;
       b += static_cast<int>(gridDim.y)) {
    const std::int64_t blocks = ceil_div(p.front.requests[b].seqlen_k, p.front.batch.block_size);
    if (first_block >= blocks) continue;
    const bool there = block < blocks;
    const TileSpan tiles = tiles_of_warp(p, b, warp);
    sums[warp][lane] = there ? sum_tiles<false>(p, tiles, head, block, 0) : 0;
    __syncthreads();
    unsigned before = 0;
    for (int i = 0; i < warp; ++i) before += sums[i][lane];
    if (there) {
      const unsigned sum = sum_tiles<true>(p, tiles, head, block, before);
      const std::int64_t row = p.front.first_blocks[b] + block;
      if (warp == kSumWarps - 1) {  // which ends with all
        if (row < p.num_entries - 1) {
          entry(p.row_ptr, head, row) = static_cast<int>(sum);
        } else {
          report(p.front.batch.status, b, -1, FaultKind::Length);
        }
      }
    }
    __syncthreads();
  }
}

/// A CTA a head: sizes of the lists become their starts; what lies behind repeats the total.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(const __grid_constant__ Params p) {
  const int head = static_cast<int>(blockIdx.x);
  const std::int64_t rows = min(p.front.first_blocks[p.front.batch.batch], p.num_entries - 1);
  std::int64_t before = 0;
  for (std::int64_t first = 0; first < p.num_entries; first += kScanThreads) {
    const std::int64_t row = first + threadIdx.x;
    const std::int64_t size = row < rows ? entry(p.row_ptr, head, row) : 0;
    std::int64_t total;
    const std::int64_t start = before + cta::exclusive_sum<kScanThreads>(size, total);
    if (row < p.num_entries) entry(p.row_ptr, head, row) = static_cast<int>(start);
    before += total;
  }
}

/// Lanes of a step that hold the same block take their places in the order of the lanes; the next
/// step begins when the counter has answered.
__global__ void __launch_bounds__(kWarps * 32) place_kernel(const __grid_constant__ Params p) {
  int index;
  prologue::TileRecord tile;
  if (!find_tile(p, index, tile)) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int head = static_cast<int>(blockIdx.y);
  const std::int64_t first_row = p.front.first_blocks[tile.request];
  int* counts = counts_of(p, index, head);
  const RequestRecord request = p.front.requests[tile.request];
  for_each_listed(p, request, tile, head, [&](int token, int slot, const ListedBlock& listed) {
    const unsigned same = __match_any_sync(kAllLanes, listed.block);
    const int leader = __ffs(static_cast<int>(same)) - 1;
    int before = 0;
    if (listed.block >= 0 && lane == leader)
      before = atomicAdd(counts + listed.block, __popc(same));
    before = __shfl_sync(kAllLanes, before, leader);
    const std::int64_t row = first_row + listed.block;
    if (listed.block < 0 || row >= p.num_entries - 1) return;
    const std::int64_t place = static_cast<std::int64_t>(entry(p.row_ptr, head, row)) + before +
                               __popc(same & lanes_below(lane));
    if (place < 0 || place >= p.length) return;  // lengths at fault: requests may share queries
    entry(p.q_indices, head, place) = static_cast<int>(request.q_begin + tile.first + token);
    entry(p.q_slots, head, place) = slot;
  });
}

/// -1 behind the total.
__global__ void __launch_bounds__(kThreads) tail_kernel(const __grid_constant__ Params p) {
  const int head = static_cast<int>(blockIdx.y);
  const std::int64_t total = max(entry(p.row_ptr, head, p.num_entries - 1), 0);
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  const std::int64_t me = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (std::int64_t i = total + me; i < p.length; i += step) {
    entry(p.q_indices, head, i) = -1;
    entry(p.q_slots, head, i) = -1;
  }
}

unsigned ctas_for(std::int64_t items, std::int64_t of_one) {
  return static_cast<unsigned>(ceil_div(items, of_one));
}

}  // namespace

int tokens_per_tile(std::int64_t total_q, std::int64_t heads, std::int64_t max_blocks) {
  std::int64_t tokens = kMinTokens;
  while (tokens < std::min<std::int64_t>(total_q, kMaxTokens) &&
         ceil_div(total_q, tokens) * heads * max_blocks > kCounters) {
    tokens *= 2;
  }
  return static_cast<int>(tokens);
}

void launch(const Params& p, cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(p.heads);
  const std::int64_t counters = std::int64_t{p.front.tiles[0].most} * p.heads * p.max_blocks;
  if (counters > 0) {
    MSA_CUDA_CHECK(
        cudaMemsetAsync(p.counts, 0, static_cast<std::size_t>(counters) * sizeof(int), stream));
  }
  const LaunchConfig tiles{.grid = dim3(ctas_for(p.front.tiles[0].most, kWarps), heads),
                           .block = dim3(kWarps * 32),
                           .stream = stream};
  const unsigned requests =
      static_cast<unsigned>(std::min<std::int64_t>(p.front.batch.batch, kMaxGridYZ));
  launch_kernel(count_kernel, tiles, p);
  launch_kernel(sum_tiles_kernel,
                {.grid = dim3(ctas_for(p.max_blocks, 32), requests, heads),
                 .block = dim3(kSumWarps * 32),
                 .stream = stream},
                p);
  launch_kernel(scan_kernel, {.grid = dim3(heads), .block = dim3(kScanThreads), .stream = stream},
                p);
  launch_kernel(place_kernel, tiles, p);
  const std::int64_t tail = std::min(ceil_div(p.length, kThreads), kMaxTailCtas);
  launch_kernel(
      tail_kernel,
      {.grid = dim3(static_cast<unsigned>(tail), heads), .block = dim3(kThreads), .stream = stream},
      p);
}

}  // namespace msa::cuda::common::invert
