// SPDX-License-Identifier: MIT
#include "cuda/common/select/plan.h"

#include <algorithm>
#include <limits>

#include "core/geometry.h"
#include "cuda/common/topk/launch.h"
#include "cuda/device.h"

namespace msa::cuda::common::select {

namespace {

using core::ceil_div;
using core::round_up;

constexpr std::int64_t kSpanUnit = 4;  // key tiles: float4s of the scratch belong to one CTA

/// Key tiles of one item that finish `tiles` query tiles soonest. `uneven`: how many keys they see
/// varies (on average `mean_tiles` key tiles), so items are taken in turn and end within half an
/// item of each other; else all see the same number and go in whole waves.
std::int64_t best_span(std::int64_t tiles, std::int64_t key_tiles, const Tuning& tuning,
                       bool uneven, std::int64_t mean_tiles) {
  const std::int64_t multiprocessors = tuning.multiprocessors;
  const std::int64_t overhead = tuning.select_overhead;
  const std::int64_t whole = std::max(kSpanUnit, round_up(key_tiles, kSpanUnit));
  if (tiles >= tuning.select_full_waves * multiprocessors) return whole;
  std::int64_t best = whole;
  std::int64_t best_cost = std::numeric_limits<std::int64_t>::max();
  for (std::int64_t span = whole; span >= kSpanUnit; span -= kSpanUnit) {
    const std::int64_t items = tiles * ceil_div(uneven ? mean_tiles : key_tiles, span);
    if (items > tuning.select_most_waves * multiprocessors) break;
    const std::int64_t balanced =
        (tiles * mean_tiles + items * overhead) / multiprocessors + span / 2;
    const std::int64_t cost = uneven ? std::max(balanced, span + overhead)
                                     : ceil_div(items, multiprocessors) * (span + overhead);
    if (cost < best_cost) {
      best_cost = cost;
      best = span;
    }
  }
  return best;
}

/// Tiles in one chunk: as many as the scratch holds, in whole pairs of waves where there are that
/// many.
std::int64_t chunk_of(std::int64_t fitting, std::int64_t num_tiles, int groups,
                      int multiprocessors) {
  if (fitting >= num_tiles) return num_tiles;
  // Heavy and light ones pair up.
  const std::int64_t waves = std::max<std::int64_t>(1, 2 * multiprocessors / groups);
  return fitting >= waves ? fitting / waves * waves : std::max<std::int64_t>(1, fitting);
}

}  // namespace

SelectPlan plan_select(const SelectShape& shape, const Tuning& tuning) {
  SelectPlan plan;
  // Neighbouring tokens choose alike, heads do not: what a tile's rows leave together is least
  // where they are many tokens of one head.
  plan.filtered = shape.filtered;
  plan.fast = shape.fast;
  plan.groups = shape.filtered ? shape.index_heads : shape.index_heads_k;
  plan.heads = shape.index_heads / plan.groups;
  plan.shares = plan.groups / shape.index_heads_k;
  plan.tokens_per_tile = kTileRows / plan.heads;
  plan.num_tiles = prologue::max_tiles(shape.total_q, shape.batch, plan.tokens_per_tile);
  plan.columns = ceil_div(shape.max_seqlen_k, shape.block_size);
  plan.chunk_tiles = plan.num_tiles;
  const std::int64_t key_tiles = ceil_div(shape.max_seqlen_k, kTileKeys);
  if (shape.scratch) {
    // Whole 32-byte sectors. Scores of listed blocks take the room of the products that they come
    // from.
    const std::int64_t words = shape.filtered ? std::max(key_tiles, plan.columns) : plan.columns;
    plan.scratch_stride = std::max<std::int64_t>(8, round_up(words, 8));
    plan.list_parts = shape.filtered ? std::max<std::int64_t>(1, key_tiles) * kTileParts : 0;
    const std::int64_t tile_bytes = plan.scratch_stride * 4 * kTileRows * plan.groups;
    const std::int64_t most = shape.filtered ? tuning.filter_scratch_bytes : tuning.scratch_bytes;
    plan.chunk_tiles =
        chunk_of(most / tile_bytes, plan.num_tiles, plan.groups, tuning.multiprocessors);
  }
  const std::int64_t full_tiles = shape.batch * ceil_div(shape.max_seqlen_q, plan.tokens_per_tile);
  const bool triangle = shape.causal && shape.max_seqlen_q == shape.max_seqlen_k;
  const bool one_chunk = plan.chunk_tiles == plan.num_tiles;
  plan.span = best_span(std::min(plan.chunk_tiles, full_tiles) * plan.groups, key_tiles, tuning,
                        triangle, triangle && one_chunk ? key_tiles / 2 : key_tiles);
  plan.spans = static_cast<int>(std::max<std::int64_t>(1, ceil_div(key_tiles, plan.span)));
  // Keys that fit the L2 cache may be read in any order; heavy items first then balances best.
  const int item_bytes = shape.filtered || shape.fast ? 1 : 2;
  plan.tile_major = shape.max_seqlen_k * shape.index_dim * item_bytes <= tuning.cached_bytes;
  plan.ctas = tuning.multiprocessors;
  plan.split_rows = topk::splits_rows(shape.total_q * shape.index_heads, plan.columns);
  return plan;
}

std::int64_t num_chunks(const SelectPlan& plan, std::int64_t tiles) {
  return ceil_div(tiles, std::max<std::int64_t>(1, plan.chunk_tiles));
}

std::int64_t tiles_of_call(const SelectPlan& plan, std::int64_t total_q, std::int64_t batch) {
  return std::min(plan.num_tiles, prologue::max_tiles(total_q, batch, plan.tokens_per_tile));
}

std::int64_t scratch_words(const SelectPlan& plan) {
  return plan.chunk_tiles * plan.groups * kTileRows * plan.scratch_stride;
}

std::int64_t chunk_lists(const SelectPlan& plan) { return plan.chunk_tiles * plan.groups; }

bool filter_pays(const SelectShape& shape, std::int64_t page_size, const Tuning& tuning) {
  // The bounds of a page are those of all blocks in it.
  if (page_size == 0 || page_size % shape.block_size != 0) return false;
  if (shape.max_seqlen_k < tuning.filter_keys || shape.index_heads > kMaxGridYZ) return false;
  if (ceil_div(shape.max_seqlen_k, shape.block_size) > kMostFilterBlocks) return false;
  const std::int64_t tiles = shape.total_q / kTileRows;  // full ones of one head
  return tiles >= shape.batch && tiles * shape.index_heads >= tuning.multiprocessors;
}

}  // namespace msa::cuda::common::select
