// SPDX-License-Identifier: MIT
// Builds the block lists of union tiles: for every tile and KV head the blocks that any of its
// tokens listed and sees, each once, latest first, with a bit for each token.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/common/attend/params.h"

namespace msa::cuda::common::attend {

struct ListParams {
  BatchParams batch{};
  const RequestRecord* requests = nullptr;
  const prologue::TileRecord* tiles = nullptr;
  const int* num_tiles = nullptr;
  int tile_begin = 0;
  int tile_limit = 0;
  int tokens_per_tile = 0;  // at most kMaxUnionTokens
  int heads_kv = 1;
  Lists lists{};
  ListHeader* headers = nullptr;  // [heads_kv, tile_limit]
  ListEntry* entries = nullptr;   // [heads_kv, tile_limit, tokens_per_tile * k]
};

void launch_lists(const ListParams& params, cudaStream_t stream);

}  // namespace msa::cuda::common::attend
