// SPDX-License-Identifier: MIT
// What attention over tiles of queries is told, whatever the instruction set: which tiles there
// are, the lists of their blocks, where output goes. Host and device read the same.
#pragma once

#include <cstdint>

#include "cuda/common/prologue/launch.h"
#include "cuda/params.h"

namespace msa::cuda::common::attend {

/// Dense: every visible block in turn. Union: the blocks that any token of the tile listed, with a
/// bit for each token.
enum class Walk : int { Dense, Union };

inline constexpr int kMaxUnionTokens = 32;  // tokens of a union tile: the bits of an entry
inline constexpr int kMaxTopk = 64;         // ids of one token

/// One block of a tile's list: its number inside the request, and which tokens of the tile listed
/// it.
struct ListEntry {
  int block;
  std::uint32_t tokens;
};

/// Length of a tile's list; the first `masked` entries hold keys that some token of the tile does
/// not see.
struct ListHeader {
  int blocks;
  int masked;
};

/// Where a tile's list for one KV head stands among those of a launch of `tile_limit` tiles.
__host__ __device__ constexpr std::int64_t list_index(int tile_limit, int head, int slot) {
  return std::int64_t{head} * tile_limit + slot;
}

struct Params {
  BatchParams batch{};
  const RequestRecord* requests = nullptr;      // [B]
  const prologue::TileRecord* tiles = nullptr;  // heaviest last
  const int* num_tiles = nullptr;
  int tile_begin = 0;  // this launch's share of the tiles: lists exist for these only
  int tile_limit = 0;  // at most so many
  int tokens_per_tile = 0;
  int splits = 1;  // CTAs along the blocks of a tile; above 1, out and lse are partials: see below
  int group = 1;   // G
  int heads_kv = 1;
  bool heads_outermost = false;              // one KV head's tiles before the next one's
  const ListHeader* list_headers = nullptr;  // [heads_kv, tile_limit]
  const ListEntry* list_entries = nullptr;   // [heads_kv, tile_limit, list_capacity]
  int list_capacity = 0;
  int longest_list = INT32_MAX;  // longer ones are left to the keys-outermost kernel
  RowsOut to{};
  std::int64_t stride_out_split = 0;  // partials: out and lse of split s start s strides later
  std::int64_t stride_lse_split = 0;
  float scale_log2 = 0;  // softmax scale * log2(e), above 0
  Suspects suspects{};
  Scales k_scales{};  // of codes, or of what they were unpacked to
  Scales v_scales{};
  int column_scales = 0;  // keys of a block have scales of their own: those of tokens or pages
};

}  // namespace msa::cuda::common::attend
