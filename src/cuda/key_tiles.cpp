// SPDX-License-Identifier: MIT
#include "cuda/key_tiles.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/geometry.h"
#include "cuda/batch.h"
#include "cuda/common/invert/launch.h"
#include "cuda/invert_stage.h"

namespace msa::cuda {
namespace {

using core::ceil_div;

// Rows of work items: few enough that all CTAs have some, enough that what an item costs beside its
// steps does not count.
constexpr std::int64_t kLeastItemRows = 2048;
constexpr std::int64_t kMostItemRows = 16384;
constexpr std::int64_t kItemsPerCta = 4;

// Items that are put in order: of more, some that end last do not count, and sorting does.
constexpr std::int64_t kMostOrdered = 16384;

constexpr std::int64_t kMostInt = std::numeric_limits<int>::max();

std::int64_t heads_of(const KeyTiles::Shape& shape, const KeyTiles::Cut& cut) {
  return cut.heads != 0 ? cut.heads : shape.heads;
}

/// Places in the lists of so many rows of q, of the heads of a launch.
std::int64_t pairs_of(const KeyTiles::Shape& shape, std::int64_t rows, const KeyTiles::Cut& cut) {
  return rows * shape.places * heads_of(shape, cut);
}

common::invert::HeadRows rows_of_heads(int* data, std::int64_t stride) { return {data, stride, 1}; }

}  // namespace

KeyTiles::Shape::Shape(const Problem& p, bool lists, int tile_keys)
    : listed(lists),
      keys(tile_keys),
      block(listed ? p.selection.block_size : keys),
      tiles(ceil_div(p.bounds.max_seqlen_k, block) * (block / keys)),
      all_tiles(tiles * p.bounds.batch),
      places(listed ? p.selection.topk * (block / keys) : std::max<std::int64_t>(1, tiles)),
      heads(p.attention.heads_kv) {}

int KeyTiles::ctas_per_sm(std::size_t cta_bytes, int keys, std::size_t shared_memory) {
  // An SM has a kilobyte more than one CTA may take, and keeps one for each; and room for 256
  // threads of 255 registers.
  constexpr std::size_t kReserved = 1024;
  const std::size_t fitting = (shared_memory + kReserved) / (cta_bytes + kReserved);
  return std::clamp(static_cast<int>(fitting), 1, 128 / keys);
}

std::int64_t KeyTiles::whole_items(const Shape& shape, std::int64_t rows, const Cut& cut) {
  return std::min(pairs_of(shape, rows, cut), shape.all_tiles * heads_of(shape, cut));
}

KeyTiles::Limits KeyTiles::limits(const Shape& shape, std::int64_t rows, const Cut& cut) {
  const std::int64_t pairs = pairs_of(shape, rows, cut);
  const std::int64_t item_rows = cut.item_rows != 0
                                     ? cut.item_rows
                                     : std::clamp(pairs * cut.group / (kItemsPerCta * cut.ctas),
                                                  kLeastItemRows, kMostItemRows);
  // A tile with more tokens than one item has at most twice as many parts as its tokens fill.
  const std::int64_t tokens = std::clamp<std::int64_t>(
      std::max(ceil_div(item_rows, cut.group), ceil_div(2 * pairs, cut.max_parts)), 1, kMostInt);
  const std::int64_t items = whole_items(shape, rows, cut) + pairs / tokens;
  return {.item_tokens = tokens,
          .max_items = items,
          .max_parts = std::min(cut.max_parts, cut.shared_tiles ? items : 2 * pairs / tokens)};
}

KeyTiles::Limits KeyTiles::most(const Shape& shape, std::int64_t rows, const Cut& cut) {
  const Limits all = limits(shape, rows, cut);
  if (cut.item_rows != 0) return all;
  // Fewer rows may fill a few items more, as long as these are cut to suit the CTAs; never more
  // than the shortest items.
  const std::int64_t pairs = pairs_of(shape, rows, cut);
  const std::int64_t suited = kItemsPerCta * cut.ctas + cut.ctas / 256 + 2;
  const std::int64_t filled = std::min(pairs / ceil_div(kLeastItemRows, cut.group),
                                       std::max(pairs / all.item_tokens, suited));
  const std::int64_t items = whole_items(shape, rows, cut) + filled;
  return {.item_tokens = all.item_tokens,
          .max_items = items,
          .max_parts = std::min(cut.max_parts, cut.shared_tiles ? items : 2 * filled + 1)};
}

KeyTiles::Limits KeyTiles::larger(const Limits& a, const Limits& b) {
  return {.item_tokens = std::max(a.item_tokens, b.item_tokens),
          .max_items = std::max(a.max_items, b.max_items),
          .max_parts = std::max(a.max_parts, b.max_parts)};
}

std::string KeyTiles::rejects_blocks(const Problem& p, bool listed) {
  if (!listed || p.selection.block_size == 64 || p.selection.block_size == 128) return "";
  return "block_size is 64 or 128 here, not " + std::to_string(p.selection.block_size);
}

std::string KeyTiles::rejects(const Problem& p, const Shape& shape) {
  if (std::string why = InvertStage::rejects(p); !why.empty()) return why;
  if (shape.listed && p.bounds.total_q * p.selection.topk > kMostInt)
    return "at most 2^31 - 1 entries of the block lists of a KV head";
  if (p.bounds.total_q * p.attention.heads_q > kMostInt - 128)
    return "at most 2^31 - 129 pairs of a query row and a query head";
  if (shape.all_tiles * shape.heads > kMostInt / 2)
    return "at most 2^30 tiles of keys: those of the longest request, times requests and KV heads";
  return "";
}

KeyTiles::KeyTiles(const Problem& p, const Shape& shape, const Limits& most, Layout& layout)
    : shape_(shape),
      requests_(layout.take<RequestRecord>(p.bounds.batch)),
      first_blocks_(layout.take<std::int64_t>(p.bounds.batch + 1)),
      counters_(layout.take<common::backward::Counters>(1)),
      items_(layout.take<common::backward::WorkItem>(most.max_items)),
      order_(layout.take<int>(std::min(most.max_items, kMostOrdered))),
      splits_(layout.take<common::backward::SplitTile>(most.max_parts / 2 + 1)) {
  if (!shape_.listed) return;
  const std::int64_t rows = p.bounds.total_q;
  q_indices_ = layout.take<int>(shape_.heads * rows * p.selection.topk);
  q_slots_ = layout.take<int>(shape_.heads * rows * p.selection.topk);
  row_ptr_ = layout.take<int>(shape_.heads * num_lists(p));
  invert_tokens_ = common::invert::tokens_per_tile(rows, shape_.heads, blocks_of(p));
  tiles_ = layout.take<common::prologue::TileRecord>(
      common::prologue::max_tiles(rows, p.bounds.batch, invert_tokens_));
  num_tiles_ = layout.take<int>(1);
  first_tiles_ = layout.take<int>(p.bounds.batch);
}

void KeyTiles::plan_inverse(const Problem& p, Layout& layout) {
  if (!shape_.listed) return;
  const std::int64_t tiles =
      common::prologue::max_tiles(p.bounds.total_q, p.bounds.batch, invert_tokens_);
  counts_ = layout.take<int>(tiles * shape_.heads * blocks_of(p));
}

/// Blocks that the requests may have, and an end.
std::int64_t KeyTiles::num_lists(const Problem& p) const {
  return p.bounds.batch * blocks_of(p) + 1;
}

common::prologue::Params KeyTiles::front(const Problem& problem, const core::Call& call,
                                         void* workspace) const {
  const BatchParams batch = make_batch(problem, call, call.k, kStatus.in(workspace));
  common::prologue::Params front{.batch = batch,
                                 .requests = requests_.in(workspace),
                                 .first_blocks = first_blocks_.in(workspace),
                                 .keys_of_block = static_cast<int>(shape_.block)};
  if (!shape_.listed) return front;
  front.tiles[0] = {.records = tiles_.in(workspace),
                    .most = static_cast<int>(
                        common::prologue::max_tiles(batch.total_q, batch.batch, invert_tokens_)),
                    .tokens = invert_tokens_,
                    .count = num_tiles_.in(workspace)};
  front.first_tiles = first_tiles_.in(workspace);
  return front;
}

common::backward::Pairs KeyTiles::run(const Problem& problem, const core::Call& call,
                                      const common::prologue::Params& front, void* workspace,
                                      cudaStream_t stream) const {
  common::prologue::launch(front, stream);
  common::backward::Pairs pairs{.batch = front.batch,
                                .requests = front.requests,
                                .first_blocks = front.first_blocks,
                                .heads_kv = static_cast<int>(shape_.heads),
                                .keys = shape_.keys,
                                .row_end = front.batch.total_q,
                                .places = static_cast<int>(shape_.places),
                                .listed = shape_.listed ? 1 : 0};
  pairs.batch.block_size = static_cast<int>(shape_.block);
  if (!shape_.listed) return pairs;
  const std::int64_t entries = front.batch.total_q * problem.selection.topk;
  pairs.lists = make_lists(call.block_ids_in);
  pairs.row_ptr = rows_of_heads(row_ptr_.in(workspace), num_lists(problem));
  pairs.q_indices = rows_of_heads(q_indices_.in(workspace), entries);
  pairs.q_slots = rows_of_heads(q_slots_.in(workspace), entries);
  common::invert::launch({.front = front,
                          .heads = pairs.heads_kv,
                          .max_blocks = static_cast<int>(blocks_of(problem)),
                          .lists = pairs.lists,
                          .counts = counts_.in(workspace),
                          .row_ptr = pairs.row_ptr,
                          .num_entries = num_lists(problem),
                          .q_indices = pairs.q_indices,
                          .q_slots = pairs.q_slots,
                          .length = entries},
                         stream);
  return pairs;
}

common::backward::Work KeyTiles::work(const Limits& limits, void* workspace) const {
  return {.counters = counters_.in(workspace),
          .items = items_.in(workspace),
          .order = limits.max_items <= kMostOrdered ? order_.in(workspace) : nullptr,
          .splits = splits_.in(workspace),
          .max_items = static_cast<int>(limits.max_items),
          .max_parts = static_cast<int>(limits.max_parts),
          .item_tokens = static_cast<int>(limits.item_tokens)};
}

}  // namespace msa::cuda
