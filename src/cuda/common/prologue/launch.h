// SPDX-License-Identifier: MIT
// The first launch of a run: clears the status word and the counters, checks and clamps every
// request, and cuts the query rows into tiles, for each kernel behind it that wants its own size.
// One CTA: a batch is small against the work behind it.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "cuda/params.h"

namespace msa::cuda::common::prologue {

inline constexpr int kPadding = -1;  // request of tiles of rows behind the last request
inline constexpr int kNoTile = -2;   // of records that no tile fills

/// Query rows that share a tile: `first` is a row of the request, of padding a row of q.
struct alignas(8) TileRecord {  // read at once
  int request;
  int first;
};

/// Tiles of up to `tokens` rows each, request after request, rows ascending, padding last.
struct TileTable {
  TileRecord* records = nullptr;  // [most]; nullptr: none wanted
  int most = 0;                   // at least max_tiles of the call
  int tokens = 1;
  int* count = nullptr;  // how many there are; nullptr: records behind them say kNoTile
};

/// Counters that start at 0.
struct Counters {
  int* data = nullptr;
  int count = 0;
};

/// Which keys of a request are new, where a run stores keys: those from `offset` of its record on.
enum class NewKeys : std::uint32_t {
  None,  // nobody asks
  Rows,  // the last ones, a row of q each
  Tail,  // those from q_offsets on; all where it is not given
};

struct Params {
  BatchParams batch{};
  RequestRecord* requests = nullptr;  // [B]
  TileTable tiles[2]{};
  int* first_tiles = nullptr;            // [B]: of tiles[0], the first of each request; or none
  std::int64_t* first_blocks = nullptr;  // [B + 1]: blocks of the requests before; or none
  int keys_of_block = 0;                 // of those; 0: the batch's blocks
  Counters counters[2]{};
  // A request at fault has no new keys. Those that have none may be longer than the page table
  // says.
  NewKeys new_keys = NewKeys::None;
};

/// Tiles that a batch can have, padding rows included: every request may end with one that is not
/// full.
constexpr std::int64_t max_tiles(std::int64_t total_q, std::int64_t batch, std::int64_t tokens) {
  return std::min((total_q + tokens - 1) / tokens + batch, total_q);
}

/// A table as the kernels read it that take a tile's rows as a request of their own
/// (tile_rows.cuh).
struct TileView {
  const TileRecord* records = nullptr;
  const RequestRecord* requests = nullptr;
  std::int64_t total_q = 0;
  int batch = 0;
  int tokens = 1;
};

inline TileView view_of(const Params& params, const TileTable& table) {
  return {.records = table.records,
          .requests = params.requests,
          .total_q = params.batch.total_q,
          .batch = params.batch.batch,
          .tokens = table.tokens};
}

void launch(const Params& params, cudaStream_t stream);

}  // namespace msa::cuda::common::prologue
