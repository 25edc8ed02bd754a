// SPDX-License-Identifier: MIT
// The first launch of a run: clears the status word and the counters, checks and clamps every
// request, and cuts the query rows into tiles. One CTA: a batch is small against the work behind
// it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/params.h"

namespace msa::cuda::common::prologue {

/// Query rows that share a tile. request -1: padding rows, `first` is then a row of q, else a row
/// of the request.
struct TileRecord {
  int request;
  int first;
};

struct Params {
  BatchParams batch{};
  RequestRecord* requests = nullptr;  // [B]
  TileRecord* tiles =
      nullptr;  // [max_tiles], request after request, rows ascending; nullptr: none wanted
  int* num_tiles = nullptr;
  int* first_tiles = nullptr;            // [B]: the first tile of each request; or none
  std::int64_t* first_blocks = nullptr;  // [B + 1]: blocks of the requests before; or none
  int max_tiles = 0;
  int tokens_per_tile = 1;
  int* counters = nullptr;  // set to 0
  int num_counters = 0;
};

/// Tiles that a batch can have, padding rows included.
std::int64_t max_tiles(std::int64_t total_q, std::int64_t batch, std::int64_t tokens_per_tile);

void launch(const Params& params, cudaStream_t stream);

}  // namespace msa::cuda::common::prologue
