// SPDX-License-Identifier: MIT
// What a CTA works on next, and how the warps of a role learn of it.
#pragma once

#include "cuda/common/number.cuh"
#include "cuda/common/prologue/tile_rows.cuh"
#include "cuda/common/select/config.h"
#include "cuda/common/tile/pipeline.cuh"
#include "cuda/geometry.cuh"

namespace msa::cuda::common::select {

/// One item of work: a tile of query rows and a span of key tiles. The producer warp writes it.
struct Work {
  RequestRecord rows;  // row 0 is the tile's first, seqlen_q their number
  int request;
  int slot;  // of the tile in this launch
  int group;
  int key_head;  // index-K head
  int span;
  int first;  // key tiles [first, end)
  int end;
  int visible_end;  // key tiles that any row sees
  int valid_rows;   // rows (token, head) of the tile; -1: no more work
};

/// Item `item` of the launch: heavy tiles, which are later ones, first.
__device__ __forceinline__ Work locate_work(const Params& p, unsigned item) {
  Work work;
  const auto tiles = static_cast<unsigned>(p.num_tiles);
  const auto spans = static_cast<unsigned>(p.spans);
  if (p.shares > 1) {  // heads that read the same keys side by side
    work.group = static_cast<int>(item % p.groups);
    item /= p.groups;
  } else {
    work.group = static_cast<int>(item / (tiles * spans));
    item %= tiles * spans;
  }
  work.key_head = work.group / p.shares;
  work.span = static_cast<int>(p.tile_major ? item % spans : item / tiles);
  work.slot = static_cast<int>(tiles - 1 - (p.tile_major ? item / spans : item % tiles));
  const prologue::TileRecord tile = p.tiles.records[work.slot];
  work.rows = prologue::rows_of(p.tiles, tile);
  work.request = tile.request;
  work.valid_rows = work.rows.seqlen_q * p.heads;
  const int last_row = work.rows.seqlen_q - 1;
  const int keys = last_row >= 0 ? visible_keys(work.rows, last_row, p.batch.causal) : 0;
  work.visible_end = (keys + kTileKeys - 1) / kTileKeys;
  const int span = static_cast<int>(p.span);
  work.first = min(work.span * span, work.visible_end);
  work.end = min(work.first + span, work.visible_end);
  return work;
}

/// The next item, for the warps of a role; every lane calls done() once it has read it. Numbers
/// that loops around wgmma depend on come from lane 0: ptxas must see that all lanes agree (C7518).
template <class Traits>
class WorkQueue {
 public:
  __device__ __forceinline__ explicit WorkQueue(typename Traits::Shared& shared)
      : shared_(shared) {}

  /// Rows of the item, or a negative number where there is none left.
  __device__ __forceinline__ int wait_next() {
    shared_.work_ring.wait_full(at_);
    return __shfl_sync(kAllLanes, work().valid_rows, 0);
  }
  __device__ __forceinline__ const Work& work() const { return shared_.work[at_.stage]; }
  __device__ __forceinline__ int first() const { return __shfl_sync(kAllLanes, work().first, 0); }
  __device__ __forceinline__ int end() const { return __shfl_sync(kAllLanes, work().end, 0); }
  __device__ __forceinline__ void done() {
    shared_.work_ring.release(at_);
    at_.advance();
  }

 private:
  typename Traits::Shared& shared_;
  RingPosition<Traits::kWorkSlots> at_{};
};

}  // namespace msa::cuda::common::select
