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

/// The tiles of this turn's requests, numbers [begin, end).
__device__ void write_tiles(const TileTable& table, std::int64_t begin, std::int64_t end,
                            const std::int64_t* starts, int first_request) {
  for (std::int64_t tile = begin + threadIdx.x; tile < end && tile < table.most; tile += kThreads) {
    const int owner = owner_of(starts, tile);
    table.records[tile] = {first_request + owner,
                           static_cast<int>(tile - starts[owner]) * table.tokens};
  }
}

/// Rows behind all requests, from tile `tiles` on; and how many tiles there are.
__device__ void finish_tiles(const BatchParams& batch, const TileTable& table, std::int64_t tiles) {
  const std::int64_t used = padding_begin(batch);
  const std::int64_t padding = ceil_div(batch.total_q - used, table.tokens);
  for (std::int64_t i = threadIdx.x; i < padding && tiles + i < table.most; i += kThreads)
    table.records[tiles + i] = {kPadding, static_cast<int>(used + i * table.tokens)};
  const std::int64_t count = min(tiles + padding, static_cast<std::int64_t>(table.most));
  if (table.count == nullptr) {
    for (std::int64_t i = count + threadIdx.x; i < table.most; i += kThreads)
      table.records[i] = {kNoTile, 0};
  } else if (threadIdx.x == 0) {
    *table.count = static_cast<int>(count);
  }
}

/// Cuts the rows of all requests, whose records this very thread wrote, into one table.
__device__ void cut_tiles(const Params& params, const TileTable& table, int* first_tiles) {
  __shared__ std::int64_t starts[kThreads];  // first tile of each request of this turn
  std::int64_t tiles = 0;
  for (int first = 0; first < params.batch.batch; first += kThreads) {
    const int b = first + static_cast<int>(threadIdx.x);
    const bool exists = b < params.batch.batch;
    const int rows = exists ? params.requests[b].seqlen_q : 0;
    std::int64_t total = 0;
    const std::int64_t start =
        tiles + cta::exclusive_sum<kThreads>(ceil_div(rows, table.tokens), total);
    starts[threadIdx.x] = start;
    if (exists && first_tiles != nullptr)
      first_tiles[b] = static_cast<int>(min(start, static_cast<std::int64_t>(table.most)));
    __syncthreads();
    write_tiles(table, tiles, tiles + total, starts, first);
    __syncthreads();
    tiles += total;
  }
  finish_tiles(params.batch, table, tiles);
}

/// The record of a request whose new keys begin at `offset`.
__device__ RequestRecord with_new_keys(const Params& params, int b, std::int64_t k_begin) {
  // Who stores nothing reads no page.
  BatchParams batch = params.batch;
  if (batch.page_size != 0) batch.page_columns = ceil_div(batch.max_seqlen_k, batch.page_size);
  bool fault = false;
  bool offset_fault = false;
  RequestRecord r = load_request(batch, b, k_begin, &fault, &offset_fault);
  fault = fault || (b == 0 && r.q_begin != 0);
  std::int64_t first = r.seqlen_k - r.seqlen_q;
  if (params.new_keys == NewKeys::Tail)
    first = batch.q_offsets.data != nullptr ? load(batch.q_offsets, b) : 0;
  fault = fault || first < 0 || first > r.seqlen_k;
  if (first < r.seqlen_k && batch.page_size != 0)
    fault = fault || ceil_div(r.seqlen_k, batch.page_size) > params.batch.page_columns;
  if (fault) report(batch.status, b, -1, FaultKind::Length);
  r.offset = fault ? r.seqlen_k : first;
  return r;
}

__global__ void __launch_bounds__(kThreads, 1) kernel(const __grid_constant__ Params params) {
  ptx::griddepcontrol_launch_dependents();
  if (threadIdx.x == 0) *params.batch.status = kNoFault;
#pragma unroll 1
  for (const Counters& counters : params.counters) {
    for (int i = threadIdx.x; i < counters.count; i += kThreads) counters.data[i] = 0;
  }
  __syncthreads();
  if (threadIdx.x == 0) check_empty_batch(params.batch);
  const int keys_of_block =
      params.keys_of_block != 0 ? params.keys_of_block : params.batch.block_size;
  std::int64_t rows_before = 0;
  std::int64_t blocks_before = 0;
  for (int first = 0; first < params.batch.batch; first += kThreads) {
    const int b = first + static_cast<int>(threadIdx.x);
    const bool exists = b < params.batch.batch;
    std::int64_t total = 0;
    const std::int64_t k_begin =
        rows_before + cta::exclusive_sum<kThreads>(exists ? rows_of(params.batch, b) : 0, total);
    rows_before += total;
    std::int64_t blocks = 0;
    if (exists) {
      const RequestRecord r = params.new_keys == NewKeys::None
                                  ? check_request(params.batch, b, k_begin, true)
                                  : with_new_keys(params, b, k_begin);
      params.requests[b] = r;
      blocks = ceil_div(r.seqlen_k, keys_of_block);
    }
    if (params.first_blocks == nullptr) continue;
    const std::int64_t before = cta::exclusive_sum<kThreads>(blocks, total);
    if (exists) params.first_blocks[b] = blocks_before + before;
    blocks_before += total;
  }
  if (params.first_blocks != nullptr && threadIdx.x == 0)
    params.first_blocks[params.batch.batch] = blocks_before;
#pragma unroll 1
  for (int t = 0; t < 2; ++t) {
    const TileTable& table = params.tiles[t];
    if (table.records != nullptr) cut_tiles(params, table, t == 0 ? params.first_tiles : nullptr);
  }
}

}  // namespace

void launch(const Params& params, cudaStream_t stream) {
  launch_kernel(kernel, {.grid = dim3(1), .block = dim3(kThreads), .stream = stream}, params);
}

}  // namespace msa::cuda::common::prologue
