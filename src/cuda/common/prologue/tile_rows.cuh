// SPDX-License-Identifier: MIT
// The rows of a tile as a request of their own: what scoring and selection see of a batch.
#pragma once

#include "cuda/common/prologue/launch.h"

namespace msa::cuda::common::prologue {

/// The record of the tile's request moved to the tile: row 0 is the tile's first, seqlen_q their
/// number, 0 where there is no tile. Rows of padding see nothing.
__device__ __forceinline__ RequestRecord rows_of(const TileView& view, const TileRecord& tile) {
  // Request 0 is read beside the tile: a batch of long prompts is often one request, and the second
  // load does not wait for the first.
  RequestRecord rows{};
  if (view.batch != 0) rows = view.requests[0];
  if (tile.request == kNoTile) return {};
  if (tile.request == kPadding) {
    rows = {};
    rows.offset = -2 * view.total_q - 1;
    rows.seqlen_q = static_cast<int>(view.total_q);
  } else if (tile.request != 0) {
    rows = view.requests[tile.request];
  }
  rows.q_begin += tile.first;
  rows.offset += tile.first;
  rows.seqlen_q = min(view.tokens, rows.seqlen_q - tile.first);
  return rows;
}

}  // namespace msa::cuda::common::prologue
