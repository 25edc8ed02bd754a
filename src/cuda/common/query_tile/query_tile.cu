// SPDX-License-Identifier: MIT
// The table of query tiles: every CTA walks the requests 256 at a time, counts their tiles and
// writes its share of them.
#include "cuda/common/query_tile/launch.h"

#include <algorithm>

#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/scan.cuh"
#include "cuda/geometry.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::query_tile {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMaxCtas = 64;  // each reads all lengths again

struct Shared {
  std::int64_t first_tile[kThreads + 1];
  RequestRecord records[kThreads];
};

/// The rows behind the last request: they see nothing.
__device__ RequestRecord padding_rows(const BatchParams& batch) {
  RequestRecord r{};
  const bool has_starts_q = batch.cu_seqlens_q.data != nullptr;  // none: one request with every row
  const std::int64_t used = has_starts_q ? load(batch.cu_seqlens_q, batch.batch) : batch.total_q;
  r.q_begin = clamp64(used, 0, batch.total_q);
  r.seqlen_q = static_cast<int>(batch.total_q - r.q_begin);
  r.offset = -batch.total_q - 1;
  return r;
}

/// Writes tiles [first_tile, first_tile + tiles) of the requests in shared memory, a thread a tile,
/// CTAs in turn.
__device__ void write_tiles(const BatchParams& batch, const Shared& shared, std::int64_t request0,
                            std::int64_t first_tile, std::int64_t tiles, int tokens_per_tile,
                            std::int64_t num_tiles, QueryTile* out) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  const std::int64_t me = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (std::int64_t t = me; t < tiles && first_tile + t < num_tiles; t += stride) {
    int slot = 0;  // the last request whose tiles start at or before t and that has any
    for (int step = kThreads / 2; step > 0; step /= 2) {
      if (shared.first_tile[slot + step] <= t) slot += step;
    }
    const int begin = static_cast<int>(t - shared.first_tile[slot]) * tokens_per_tile;
    QueryTile tile{};
    tile.rows = shared.records[slot];
    tile.rows.q_begin += begin;
    tile.rows.offset += begin;
    tile.rows.seqlen_q = min(tokens_per_tile, tile.rows.seqlen_q - begin);
    tile.request = request0 + slot < batch.batch ? static_cast<int>(request0 + slot) : -1;
    out[first_tile + t] = tile;
  }
}

__global__ void __launch_bounds__(kThreads)
    query_tiles(const __grid_constant__ BatchParams batch, int tokens_per_tile,
                std::int64_t num_tiles, QueryTile* out, unsigned* counters,
                std::int64_t num_counters) {
  __shared__ Shared shared;
  ptx::griddepcontrol_launch_dependents();
  if (blockIdx.x == 0 && threadIdx.x == 0) check_empty_batch(batch);
  std::int64_t first_tile = 0;
  std::int64_t k_begin = 0;
  for (std::int64_t request0 = 0; request0 <= batch.batch; request0 += kThreads) {
    const std::int64_t b = request0 + threadIdx.x;
    std::int64_t total_keys;
    const std::int64_t keys_before = cta::exclusive_sum<kThreads>(
        b < batch.batch ? rows_of(batch, static_cast<int>(b)) : 0, total_keys);
    RequestRecord record{};
    if (b < batch.batch) {
      record = check_request(batch, static_cast<int>(b), k_begin + keys_before, blockIdx.x == 0);
    } else if (b == batch.batch) {
      record = padding_rows(batch);
    }
    std::int64_t tiles;
    const std::int64_t mine = ceil_div(record.seqlen_q, tokens_per_tile);
    shared.first_tile[threadIdx.x] = cta::exclusive_sum<kThreads>(mine, tiles);
    shared.records[threadIdx.x] = record;
    __syncthreads();
    write_tiles(batch, shared, request0, first_tile, tiles, tokens_per_tile, num_tiles, out);
    first_tile += tiles;
    k_begin += total_keys;
    __syncthreads();
  }
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t t = first_tile + blockIdx.x * kThreads + threadIdx.x; t < num_tiles;
       t += stride)
    out[t] = {};
  for (std::int64_t c = blockIdx.x * kThreads + threadIdx.x; c < num_counters; c += stride) {
    counters[c] = 0;
  }
}

}  // namespace

void launch_query_tiles(const BatchParams& batch, int tokens_per_tile, std::int64_t num_tiles,
                        QueryTile* tiles, unsigned* counters, std::int64_t num_counters,
                        cudaStream_t stream) {
  // One at least: lengths are checked where there is no row, too.
  const auto ctas =
      static_cast<unsigned>(std::clamp<std::int64_t>(ceil_div(num_tiles, kThreads), 1, kMaxCtas));
  launch_kernel(query_tiles, {.grid = ctas, .block = kThreads, .stream = stream}, batch,
                tokens_per_tile, num_tiles, tiles, counters, num_counters);
}

}  // namespace msa::cuda::common::query_tile
