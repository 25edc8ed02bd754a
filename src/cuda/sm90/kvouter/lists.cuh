// SPDX-License-Identifier: MIT
// What every kernel of the folder asks of a chunk: its tiles, whose turn they are, and which slots
// of a token count.
#pragma once

#include "cuda/common/lists.cuh"
#include "cuda/geometry.cuh"
#include "cuda/sm90/kvouter/config.h"

namespace msa::cuda::sm90::kvouter {

__device__ __forceinline__ int tiles_in(const Params& p, int begin, int limit) {
  return min(max(*p.num_tiles - begin, 0), limit);
}

/// Whether tile `slot` of the launch is this kernel's for a KV head: its tokens share too few
/// blocks for the union kernel.
__device__ __forceinline__ bool takes(const Params& p, int head, int slot) {
  return slot < tiles_in(p, p.tile_begin, p.tile_limit) &&
         p.list_headers[attend::list_index(p.tile_limit, head, slot)].blocks > p.longest_list;
}

/// Blocks of all requests.
__device__ __forceinline__ std::int64_t total_blocks(const Params& p) {
  return p.first_blocks[p.batch.batch];
}

/// Partials, and with them entries, of a chunk.
__device__ __forceinline__ std::int64_t chunk_slots(const Params& p) {
  return static_cast<std::int64_t>(p.chunk_tiles) * p.tokens_per_tile * p.heads_kv * p.lists.k;
}

/// Rows that exist in this call: its bounds may allow a hundred times as many.
__device__ __forceinline__ std::int64_t num_rows(const Params& p) {
  return p.heads_kv * total_blocks(p);
}
/// Ints from a row's counter to the next one's.
__device__ __forceinline__ int counter_stride(const Params& p) {
  int stride = kSpread;
  while (stride > 1 && num_rows(p) * stride > p.spread_rows) stride /= 2;
  return stride;
}

__device__ __forceinline__ int* chunk_counts(const Params& p, int chunk) {
  return p.counts + chunk * (p.spread_rows + kChunkCounters) + kChunkCounters;
}
/// Work items of a chunk, and the next one to take: in front of the counts of its rows.
__device__ __forceinline__ int& chunk_num_items(const Params& p, int chunk) {
  return chunk_counts(p, chunk)[-2];
}
__device__ __forceinline__ int& chunk_next_item(const Params& p, int chunk) {
  return chunk_counts(p, chunk)[-1];
}

__device__ __forceinline__ int* chunk_cursors(const Params& p, int chunk) {
  return p.cursors + chunk * p.spread_rows;
}

__device__ __forceinline__ WorkItem* chunk_items(const Params& p, int chunk) {
  const std::int64_t slots = chunk_slots(p);
  return p.items + chunk * (slots / kItemTokens + min(p.max_rows, slots));
}

__device__ __forceinline__ Entry* chunk_entries(const Params& p, int chunk) {
  return p.entries + chunk * chunk_slots(p);
}

__device__ __forceinline__ std::int64_t inverse_row(const Params& p, int head, int request,
                                                    int block) {
  return head * total_blocks(p) + p.first_blocks[request] + block;
}

/// Local block that lane `lane`'s slot of the token lists and sees, or -1. All lanes of a warp call
/// it; bad ids were reported when the union lists were built.
__device__ __forceinline__ int slot_block(const Params& p, const RequestRecord& request,
                                          std::int64_t token, int head, int lane) {
  const int* ids = common::slots_of(p.lists.ids, request.q_begin + token, head);
  const int id = lane < p.lists.k ? ids[lane * p.lists.ids.stride_slot] : -1;
  const std::int64_t visible = ceil_div(visible_keys(request, token, p.batch.causal != 0), kBlock);
  const common::ListReader reader(request, kBlock, visible);
  return common::warp::read_slots(reader, id, lane).listed.block;
}

}  // namespace msa::cuda::sm90::kvouter
