// SPDX-License-Identifier: MIT
// What an instance of the keys-outermost kernels is compiled for, and what a launch tells it. Host
// and device read the same.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/common/prologue/launch.h"
#include "cuda/params.h"
#include "cuda/sm90/attend/config.h"

namespace msa::cuda::sm90::kvouter {

inline constexpr int kBlock = 128;       // keys of a block
inline constexpr int kDim = 128;         // head dim of keys and values
inline constexpr int kGroup = 16;        // query heads of a KV head: the rows of one warp
inline constexpr int kMaxTopk = 32;      // one lane a slot
inline constexpr int kItemTokens = 384;  // queries of one work item: 32 tiles of 12
inline constexpr int kChunkCounters = 2;
// Counters of few rows stand far apart, up to kSpread ints: side by side they would share a few
// slices of L2, which take one atomic at a time.
inline constexpr int kSpreadRows = 16384;
inline constexpr int kSpread = 32;
inline constexpr int kPartialVectors = kGroup * kDim / 8;  // 16-byte vectors of one partial

struct Config {
  Storage storage = Storage::Bf16;  // of q, and what is multiplied
  Storage kv = storage;             // of k and v: as q, or E4m3
  friend constexpr bool operator==(const Config&, const Config&) = default;
};

/// One query of a block's list.
struct Entry {
  int row;  // of q
  std::uint32_t
      slot;  // of the partial: (token of the chunk * heads_kv + head) * topk + place in the list
};

/// A row of a partial: its values are steps * scale.
struct PartialRow {
  float lse;  // base 2
  float scale;
};

/// Queries begin .. begin + count of its chunk's entries, all of which listed one block of one KV
/// head.
struct WorkItem {
  int head;
  int request;
  int block;
  int begin;
  int count;
};

struct Params {
  BatchParams batch{};
  const RequestRecord* requests = nullptr;              // [B]
  const common::prologue::TileRecord* tiles = nullptr;  // of tokens_per_tile tokens each
  const int* num_tiles = nullptr;
  int tile_begin = 0;  // the launch, as the union kernel has it
  int tile_limit = 0;
  int chunk_tiles = 0;  // tiles whose partials fit in memory at a time
  int tokens_per_tile = 8;
  int heads_kv = 1;
  Lists lists{};
  // Union lists of the launch, [heads_kv, tile_limit]; the union kernel takes those up to
  // longest_list.
  const attend::ListHeader* list_headers = nullptr;
  int longest_list = 0;
  // Inverse of the lists, chunk after chunk: rows are (head, request, block) of the blocks that
  // exist.
  const std::int64_t* first_blocks = nullptr;  // [B + 1]: blocks of the requests before
  std::int64_t max_rows = 0;                   // planned
  std::int64_t spread_rows = 0;                // room for the counters of max_rows, see kSpreadRows
  int* counts = nullptr;      // [chunks, kChunkCounters + spread_rows]: items, next item, rows
  int* cursors = nullptr;     // [chunks, spread_rows]
  Entry* entries = nullptr;   // [chunks, chunk_slots]
  WorkItem* items = nullptr;  // [chunks, max_items(chunk_slots, max_rows)]
  uint4* partials = nullptr;  // [slots, kPartialVectors]: steps (steps.cuh) in fragment order
  PartialRow* partial_rows = nullptr;  // [slots, kGroup]
  RowsOut to{};
  float scale_log2 = 0;
  Suspects suspects{};
  Scales k_scales{};  // of codes, one for all keys of a block
  Scales v_scales{};
};

struct Maps {
  CUtensorMap q;  // boxes of one token: 16 heads x 64
  CUtensorMap k;
  CUtensorMap v;
};

/// Room for the counters of a chunk's rows.
constexpr std::int64_t spread_rows(std::int64_t rows) {
  return rows > kSpreadRows ? rows : kSpreadRows;
}
/// Rows that the inverse index of one chunk can have.
constexpr std::int64_t inverse_rows(std::int64_t batch, std::int64_t heads_kv,
                                    std::int64_t max_blocks) {
  return batch * heads_kv * max_blocks;
}
/// Work items that `slots` entries in `rows` rows can need.
constexpr std::int64_t max_items(std::int64_t slots, std::int64_t rows) {
  return slots / kItemTokens + (rows < slots ? rows : slots);
}

}  // namespace msa::cuda::sm90::kvouter
