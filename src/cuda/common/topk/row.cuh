// SPDX-License-Identifier: MIT
// A row of block scores and what may be chosen of it.
#pragma once

#include "cuda/common/number.cuh"
#include "cuda/common/topk/launch.h"
#include "cuda/geometry.cuh"

namespace msa::cuda::common::topk {

/// One row and what it may choose from. Blocks are local to the request until they are written.
struct Row {
  int token;    // in the tile
  int head;     // of all
  int slot;     // row of the scratch, in the tile's group
  int visible;  // blocks
  int init;     // forced blocks: [0, init) and [local, visible)
  int local;
};

__device__ __forceinline__ Row locate_row(const TopkParams& p, const RequestRecord& rows, int group,
                                          int r) {
  Row row;
  row.token = r / p.heads;
  row.head = group * p.heads + r % p.heads;
  row.slot = r;
  const int keys = visible_keys(rows, row.token, p.causal);
  const int first_id = static_cast<int>(rows.key_offset) / p.block_size;
  row.visible = static_cast<int>(
      min(static_cast<std::int64_t>((keys + p.block_size - 1) / p.block_size), p.columns));
  row.init = min(max(p.init_blocks - first_id, 0), row.visible);
  // Divisions in 32 bits: where the last key lies further on, no local block lies in this shard.
  const std::int64_t last = last_position(rows, row.token, p.causal) - rows.key_offset;
  const int last_block = static_cast<int>(clamp64(last, 0, 0x7fffffff)) / p.block_size;
  row.local = min(max(last_block + 1 - p.local_blocks, row.init), row.visible);
  return row;
}

/// Row `lane` of a warp's rows, located by that lane: the divisions are paid once for all of them.
__device__ __forceinline__ Row row_of_lane(const Row& mine, int lane) {
  Row row;
  row.token = __shfl_sync(kAllLanes, mine.token, lane);
  row.head = __shfl_sync(kAllLanes, mine.head, lane);
  row.slot = __shfl_sync(kAllLanes, mine.slot, lane);
  row.visible = __shfl_sync(kAllLanes, mine.visible, lane);
  row.init = __shfl_sync(kAllLanes, mine.init, lane);
  row.local = __shfl_sync(kAllLanes, mine.local, lane);
  return row;
}

/// Blocks that are not forced, and how many of them are chosen at most.
__device__ __forceinline__ int free_blocks(const Row& row) { return row.local - row.init; }
__device__ __forceinline__ int free_slots(const TopkParams& p, const Row& row) {
  return p.k - row.init - (row.visible - row.local);
}

}  // namespace msa::cuda::common::topk
