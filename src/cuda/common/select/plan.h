// SPDX-License-Identifier: MIT
// How block scores and selections are cut into tiles, spans and chunks: from host numbers alone.
#pragma once

#include <cstdint>

#include "cuda/common/select/config.h"
#include "cuda/tuning.h"

namespace msa::cuda::common::select {

/// Blocks of a request that a filter's selection takes: their bounds lie in shared memory.
inline constexpr std::int64_t kMostFilterBlocks = 9 * 1024;

/// How a problem is cut; from host numbers alone.
struct SelectPlan {
  bool filtered = false;  // scores of what a filter leaves
  bool fast = false;      // scores by a filter's codes alone
  int heads = 1;          // index heads of a row's token in one tile
  int groups = 1;         // of them: index-K heads; filtered, index heads
  int shares = 1;         // groups of one index-K head
  int tokens_per_tile = 0;
  std::int64_t num_tiles = 0;    // slots of the tile table
  std::int64_t chunk_tiles = 0;  // tiles scored before their top-k
  std::int64_t span = 0;         // key tiles of one item
  int spans = 1;
  bool tile_major = false;
  std::int64_t columns = 0;         // blocks of the longest request
  std::int64_t scratch_stride = 0;  // words of one row of the scratch; 0: no scratch
  std::int64_t list_parts = 0;      // filtered: most of a tile and index head
  bool split_rows = false;          // several warps a row in the top-k
  int ctas = 1;                     // of the scoring kernel: one a multiprocessor
};

struct SelectShape {
  std::int64_t total_q = 0;
  std::int64_t max_seqlen_q = 0;
  std::int64_t max_seqlen_k = 0;
  std::int64_t batch = 1;
  int index_heads = 1;
  int index_heads_k = 1;
  int index_dim = 128;
  int block_size = 128;
  bool causal = true;
  bool scratch = true;  // select_blocks; false: block_scores
  bool filtered = false;
  bool fast = false;
};

/// At most tuning.scratch_bytes of scratch, at least one tile.
SelectPlan plan_select(const SelectShape& shape, const Tuning& tuning);

/// Slots of the tile table that a call of `total_q` rows and `batch` requests can fill: of the
/// call, not of the plan, which may be made for far longer prompts.
std::int64_t tiles_of_call(const SelectPlan& plan, std::int64_t total_q, std::int64_t batch);

/// Rounds of scoring and top-k over `tiles`.
std::int64_t num_chunks(const SelectPlan& plan, std::int64_t tiles);

/// Counters of items of a chunk.
constexpr int item_counters(const SelectPlan& plan) { return plan.filtered ? 2 : 1; }

/// Of the scratch.
std::int64_t scratch_words(const SelectPlan& plan);

/// Tiles and groups of a chunk, each with a list where the plan is filtered.
std::int64_t chunk_lists(const SelectPlan& plan);

/// Whether the products of a filter's codes, then scores of what they leave, take less time than
/// scores of all keys; from bounds alone. `page_size` 0: ragged keys.
bool filter_pays(const SelectShape& shape, std::int64_t page_size, const Tuning& tuning);

}  // namespace msa::cuda::common::select
