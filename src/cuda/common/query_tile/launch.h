// SPDX-License-Identifier: MIT
// Query tiles: consecutive query rows of one request that one CTA works on. Lengths live on the
// device, so a small kernel turns them into a table of tiles; the host knows only how many there
// can be.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "cuda/params.h"

namespace msa::cuda::common::query_tile {

/// One tile. `rows` is the request's record moved to the tile: its row 0 is the tile's first row,
/// seqlen_q their number (0: a slot of the table that no tile fills). Rows of padding behind the
/// last request make tiles of request -1.
struct QueryTile {
  RequestRecord rows;
  int request;
  int reserved;
};

/// Slots that the table needs: every request, and the padding, may end with a tile that is not
/// full.
constexpr std::int64_t max_query_tiles(std::int64_t total_q, std::int64_t batch,
                                       int tokens_per_tile) {
  return total_q / tokens_per_tile + std::min(batch + 1, total_q);
}

/// Fills tiles[0 .. num_tiles) from the batch, num_tiles as max_query_tiles says, and zeroes
/// counters.
void launch_query_tiles(const BatchParams& batch, int tokens_per_tile, std::int64_t num_tiles,
                        QueryTile* tiles, unsigned* counters, std::int64_t num_counters,
                        cudaStream_t stream);

}  // namespace msa::cuda::common::query_tile
