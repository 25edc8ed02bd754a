// SPDX-License-Identifier: MIT
// What is to be done for a tile of queries: which rows, which keys each sees, which steps.
#pragma once

#include "cuda/common/attend/params.h"
#include "cuda/geometry.cuh"

namespace msa::cuda::common::attend {

/// What a work item is.
struct Place {
  int slot;  // of the tile, in the launch
  int head;
  int split;
};

/// A tile's rows of q and steps.
struct Job {
  int request;  // -1: padding rows
  int slot;     // of the tile in this launch
  int tokens;   // of the tile; 0 to tokens_per_tile
  int row;      // first row of q
  int head;     // KV head
  int split;    // of the blocks of the tile
  int first;    // dense: block of the first step; union: entry of the first step
  int blocks;   // steps
  int masked;   // the first steps that need element masks; at least the first gets one
  int base;     // token t of the tile sees clamp(base + t, 0, limit) keys
  int limit;
};

/// Tiles of this launch: known on the device only, because they depend on the lengths.
__device__ __forceinline__ int launch_tiles(const Params& params) {
  return min(max(*params.num_tiles - params.tile_begin, 0), params.tile_limit);
}

/// The list of a tile of the launch for one KV head.
__device__ __forceinline__ const ListHeader& list_header(const Params& params, int head, int slot) {
  return params.list_headers[list_index(params.tile_limit, head, slot)];
}

/// The tile's share of its list.
__device__ __forceinline__ const ListEntry* list_of(const Params& params, const Job& job) {
  return params.list_entries +
         list_index(params.tile_limit, job.head, job.slot) * params.list_capacity + job.first;
}

/// Heads innermost: the heaviest tiles of all heads come first. Outermost: the CTAs walk the keys
/// of one head together, which then come from L2.
__device__ __forceinline__ Place place_of(const Params& params, int item, int tiles) {
  const int pair = item / params.splits;
  const int head = params.heads_outermost ? pair / tiles : pair % params.heads_kv;
  const int back = params.heads_outermost ? pair % tiles : pair / params.heads_kv;
  return {tiles - 1 - back, head, item - pair * params.splits};
}

/// This split's share of a tile's steps; at most 2^24 steps and 64 splits.
__device__ __forceinline__ void share_steps(const Params& params, Job& job, int blocks,
                                            int masked) {
  const int end = blocks * (job.split + 1) / params.splits;
  job.first = blocks * job.split / params.splits;
  job.blocks = end - job.first;
  job.masked = min(masked, end) - job.first;
}

/// `kBlock`: keys of a step of the dense walk.
template <Walk kWalk, int kBlock>
__device__ __forceinline__ Job describe(const Params& params, const Place& place) {
  const auto& [slot, head, split] = place;
  const prologue::TileRecord tile = params.tiles[params.tile_begin + slot];
  Job job{};
  job.request = tile.request;
  job.slot = slot;
  job.head = head;
  job.split = split;
  if (tile.request < 0) {
    job.row = tile.first;
    job.tokens = static_cast<int>(
        min(params.batch.total_q - tile.first, static_cast<std::int64_t>(params.tokens_per_tile)));
    return job;
  }
  const RequestRecord& request = params.requests[tile.request];
  job.row = static_cast<int>(request.q_begin) + tile.first;
  job.tokens = min(request.seqlen_q - tile.first, params.tokens_per_tile);
  const bool causal = params.batch.causal != 0;
  // With the last position of an unlimited row the limit is the number of keys; the base then
  // never binds.
  job.limit = visible_keys(request, INT32_MAX, false);
  job.base = causal ? static_cast<int>(clamp64(request.offset - request.key_offset + 1 + tile.first,
                                               -(1 << 30), 1 << 30))
                    : 1 << 30;
  if constexpr (kWalk == Walk::Union) {
    const ListHeader header = list_header(params, head, slot);
    share_steps(params, job, header.blocks, header.masked);
  } else {
    const int most = min(max(job.base + job.tokens - 1, 0), job.limit);
    const int least = min(max(job.base, 0), job.limit);
    const int blocks = (most + kBlock - 1) / kBlock;
    share_steps(params, job, blocks, blocks - least / kBlock);
    job.first = blocks - 1 - job.first;  // the diagonal comes first
  }
  return job;
}

}  // namespace msa::cuda::common::attend
