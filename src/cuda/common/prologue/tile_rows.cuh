// SPDX-License-Identifier: MIT
// The rows of a tile as a request of their own: what scoring and selection see of a batch.
#pragma once

#include "cuda/common/prologue/launch.h"

namespace msa::cuda::common::prologue {

/// The record of the tile's request moved to the tile: row 0 is the tile's first, seqlen_q their
/// number, 0 where there is no tile. Rows of padding see nothing.
__device__ __forceinline__ RequestRecord rows_of(const TileView& view, const TileRecord& tile) {
  if (tile.request == kNoTile) return {};
  RequestRecord rows{};
  if (tile.request == kPadding) {
    rows.q_begin = 0;
    rows.offset = -2 * view.total_q - 1;
    rows.seqlen_q = static_cast<int>(view.total_q);
  } else {
    rows = view.requests[tile.request];
  }
  rows.q_begin += tile.first;
  rows.offset += tile.first;
  rows.seqlen_q = min(view.tokens, rows.seqlen_q - tile.first);
  return rows;
}

}  // namespace msa::cuda::common::prologue
