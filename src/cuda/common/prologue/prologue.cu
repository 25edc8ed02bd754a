// SPDX-License-Identifier: MIT
#include "cuda/common/prologue/launch.h"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/scan.cuh"
#include "cuda/geometry.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::prologue {
namespace {

constexpr int kThreads = 1024;

/// Last of `starts[0 .. kThreads)` that is not above `tile`: the request of a tile.
__device__ int owner_of(const std::int64_t* starts, std::int64_t tile) {
  int low = 0;
  for (int step = kThreads / 2; step > 0; step /= 2) {
    if (starts[low + step] <= tile) low += step;
  }
  return low;
}

__device__ void write_tiles(const Params& params, std::int64_t begin, std::int64_t end,
                            const std::int64_t* starts, int first_request) {
  for (std::int64_t tile = begin + threadIdx.x; tile < end && tile < params.max_tiles;
       tile += kThreads) {
    const int owner = owner_of(starts, tile);
    params.tiles[tile] = {first_request + owner,
                          static_cast<int>(tile - starts[owner]) * params.tokens_per_tile};
  }
}

/// Rows behind the last request; returns the number of tiles of the batch.
__device__ std::int64_t write_padding(const Params& params, std::int64_t tiles) {
  const IntVector& starts = params.batch.cu_seqlens_q;
  const std::int64_t rows = params.batch.total_q;
  const std::int64_t used =
      starts.data != nullptr ? clamp64(load(starts, params.batch.batch), 0, rows) : rows;
  const std::int64_t padding = ceil_div(rows - used, params.tokens_per_tile);
  for (std::int64_t i = threadIdx.x; i < padding && tiles + i < params.max_tiles; i += kThreads) {
    params.tiles[tiles + i] = {-1, static_cast<int>(used + i * params.tokens_per_tile)};
  }
  return min(tiles + padding, static_cast<std::int64_t>(params.max_tiles));
}

__global__ void __launch_bounds__(kThreads, 1) kernel(const __grid_constant__ Params params) {
  __shared__ std::int64_t starts[kThreads];  // first tile of each request of this turn
  ptx::griddepcontrol_launch_dependents();
  if (threadIdx.x == 0) *params.batch.status = kNoFault;
  for (int i = threadIdx.x; i < params.num_counters; i += kThreads) params.counters[i] = 0;
  __syncthreads();
  if (threadIdx.x == 0) check_empty_batch(params.batch);
  std::int64_t rows_before = 0;
  std::int64_t blocks_before = 0;
  std::int64_t tiles_before = 0;
  for (int first = 0; first < params.batch.batch; first += kThreads) {
    const int b = first + static_cast<int>(threadIdx.x);
    const bool exists = b < params.batch.batch;
    std::int64_t total = 0;
    const std::int64_t k_begin =
        rows_before + cta::exclusive_sum<kThreads>(exists ? rows_of(params.batch, b) : 0, total);
    rows_before += total;
    int seqlen_q = 0;
    std::int64_t blocks = 0;
    if (exists) {
      const RequestRecord r = check_request(params.batch, b, k_begin, true);
      params.requests[b] = r;
      seqlen_q = r.seqlen_q;
      blocks = ceil_div(r.seqlen_k, params.batch.block_size);
    }
    if (params.first_blocks != nullptr) {
      const std::int64_t before = cta::exclusive_sum<kThreads>(blocks, total);
      if (exists) params.first_blocks[b] = blocks_before + before;
      blocks_before += total;
    }
    if (params.tiles == nullptr) continue;
    const std::int64_t before =
        cta::exclusive_sum<kThreads>(ceil_div(seqlen_q, params.tokens_per_tile), total);
    starts[threadIdx.x] = tiles_before + before;
    if (exists && params.first_tiles != nullptr) {
      params.first_tiles[b] =
          static_cast<int>(min(tiles_before + before, static_cast<std::int64_t>(params.max_tiles)));
    }
    __syncthreads();
    write_tiles(params, tiles_before, tiles_before + total, starts, first);
    __syncthreads();
    tiles_before += total;
  }
  if (params.first_blocks != nullptr && threadIdx.x == 0)
    params.first_blocks[params.batch.batch] = blocks_before;
  if (params.tiles == nullptr) return;
  const std::int64_t tiles = write_padding(params, tiles_before);
  if (threadIdx.x == 0) *params.num_tiles = static_cast<int>(tiles);
}

}  // namespace

std::int64_t max_tiles(std::int64_t total_q, std::int64_t batch, std::int64_t tokens_per_tile) {
  return ceil_div(total_q, tokens_per_tile) + batch;
}

void launch(const Params& params, cudaStream_t stream) {
  launch_kernel(kernel, {.grid = dim3(1), .block = dim3(kThreads), .stream = stream}, params);
}

}  // namespace msa::cuda::common::prologue
