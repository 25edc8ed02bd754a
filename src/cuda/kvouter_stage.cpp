// SPDX-License-Identifier: MIT
#include "cuda/kvouter_stage.h"

#include <algorithm>

#include "core/fields.h"
#include "core/geometry.h"
#include "cuda/batch.h"
#include "cuda/box.h"
#include "cuda/tensor_map.h"

namespace msa::cuda {
namespace {

namespace kvouter = sm90::kvouter;

// With so few blocks no list of neighbours is long enough for the keys-outermost kernel.
constexpr std::int64_t kSharedLists = 2;

/// Bytes of one (query, block) slot.
constexpr std::int64_t kSlotBytes =
    kvouter::kPartialVectors * 16 +
    kvouter::kGroup * static_cast<std::int64_t>(sizeof(kvouter::PartialRow));

}  // namespace

KvOuterStage::Chunks KvOuterStage::chunks_of(const Problem& p, const Tuning& tuning,
                                             int tokens_per_tile, int max_tiles) {
  const std::int64_t tile_slots = tokens_per_tile * p.attention.heads_kv * p.selection.topk;
  const std::int64_t fitting =
      std::max<std::int64_t>(1, tuning.partial_bytes / (tile_slots * kSlotBytes));
  const std::int64_t all = std::max(max_tiles, 1);
  const std::int64_t fewest = core::ceil_div(all, fitting);
  const std::int64_t tiles = core::ceil_div(all, fewest);  // equally large
  return {.tiles = static_cast<int>(tiles),
          .chunks = core::ceil_div(max_tiles, tiles),
          .slots = tiles * tile_slots,
          .rows = kvouter::inverse_rows(p.bounds.batch, p.attention.heads_kv,
                                        std::max<std::int64_t>(1, blocks_of(p)))};
}

/// Whether one scale serves all keys of a block, and one all values.
bool shares_scales(const Problem& p) {
  const Scale scale = core::kv_format(p).scale;
  return scale != Scale::Token &&
         (scale != Scale::Page || p.bounds.page_size % kvouter::kBlock == 0);
}

bool KvOuterStage::serves(const Problem& p, const Tuning& tuning, int tokens_per_tile,
                          int max_tiles) {
  const Chunks cut = chunks_of(p, tuning, tokens_per_tile, max_tiles);
  // Whether a tile has the choice depends on the bounds of the whole batch, which batch invariance
  // forbids.
  return p.op != Op::DenseAttention && !p.options.batch_invariant &&
         p.attention.heads_q / p.attention.heads_kv == kvouter::kGroup &&
         p.attention.head_dim == kvouter::kDim && p.selection.block_size == kvouter::kBlock &&
         p.selection.topk <= kvouter::kMaxTopk && shares_scales(p) &&
         cut.rows <= tuning.inverse_bytes / (2 * static_cast<std::int64_t>(sizeof(int))) /
                         std::max<std::int64_t>(1, cut.chunks) &&
         blocks_of(p) > kSharedLists * p.selection.topk;
}

KvOuterStage::KvOuterStage(const Problem& p, const Tuning& tuning, int tokens_per_tile,
                           int max_tiles, Layout& layout)
    : chunks_(chunks_of(p, tuning, tokens_per_tile, max_tiles)),
      longest_list_(static_cast<int>(tuning.list_factor * static_cast<double>(p.selection.topk))) {
  const auto& [tiles, chunks, slots, rows] = chunks_;
  counts_ = layout.take<int>(chunks * (kvouter::spread_rows(rows) + kvouter::kChunkCounters));
  cursors_ = layout.take<int>(chunks * kvouter::spread_rows(rows));
  entries_ = layout.take<kvouter::Entry>(chunks * slots);
  items_ = layout.take<kvouter::WorkItem>(chunks * kvouter::max_items(slots, rows));
  partials_ = layout.take<uint4>(slots * kvouter::kPartialVectors);
  partial_rows_ = layout.take<kvouter::PartialRow>(slots * kvouter::kGroup);
}

void KvOuterStage::run(const Problem& problem, const core::Call& call, const Tensor& block_ids,
                       const sm90::attend::Params& attend, const std::int64_t* first_blocks,
                       int ctas, void* workspace, cudaStream_t stream) const {
  kvouter::Params params{.batch = attend.batch,
                         .requests = attend.requests,
                         .tiles = attend.tiles,
                         .num_tiles = attend.num_tiles,
                         .tile_begin = attend.tile_begin,
                         .tile_limit = attend.tile_limit,
                         .chunk_tiles = chunks_.tiles,
                         .tokens_per_tile = attend.tokens_per_tile,
                         .heads_kv = attend.heads_kv,
                         .lists = make_lists(block_ids),
                         .list_headers = attend.list_headers,
                         .longest_list = longest_list_,
                         .first_blocks = first_blocks,
                         .max_rows = chunks_.rows,
                         .spread_rows = kvouter::spread_rows(chunks_.rows),
                         .counts = counts_.in(workspace),
                         .cursors = cursors_.in(workspace),
                         .entries = entries_.in(workspace),
                         .items = items_.in(workspace),
                         .partials = partials_.in(workspace),
                         .partial_rows = partial_rows_.in(workspace),
                         .to = attend.to,
                         .scale_log2 = attend.scale_log2,
                         .suspects = attend.suspects,
                         .k_scales = attend.k_scales,
                         .v_scales = attend.v_scales};
  const int box = box_tokens(kvouter::kBlock, problem.bounds.page_size);
  const kvouter::Maps maps{
      .q = make_query_map(call.q, problem.attention.heads_kv, kvouter::kGroup, 1, "q"),
      .k = make_key_map(call.k, box, "k"),
      .v = make_key_map(call.v, box, "v")};
  kvouter::launch({.storage = storage_of(problem.attention.q.storage),
                   .kv = storage_of(core::kv_format(problem).storage)},
                  params, maps, ctas, stream);
}

}  // namespace msa::cuda
