// SPDX-License-Identifier: MIT
// What the launches of block_scores and select_blocks have in common, whatever scores: parameters
// from a plan, and the chunks in which scoring and top-k alternate over a bounded scratch.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "cuda/common/select/plan.h"
#include "cuda/common/topk/launch.h"

namespace msa::cuda::common::select {

struct Queries {
  Rows<const void> rows{};  // [T, Hi, Di]
  Storage storage = Storage::Bf16;
  int dim = 128;
};

struct ScoresOut {
  Slots<float> scores{};  // [T, Hi, columns]
  std::int64_t columns = 0;
};

/// What the prologue left.
struct Front {
  BatchParams batch{};
  prologue::TileView tiles{};
  std::int64_t num_tiles = 0;      // records of `tiles`, some of them without a tile
  unsigned* next_items = nullptr;  // [num_chunks(num_tiles) * item_counters], 0
};

Params score_params(const SelectPlan& plan, const Front& front, const Queries& queries);

/// Rows of a chunk's scratch. Of `out`, the ids, the chosen scores and k are read.
topk::TopkParams chunk_rows(const SelectPlan& plan, const Front& front, const topk::TopkParams& out,
                            const float* scratch);

/// visit(first, tiles) for every chunk. From the back: the chunk that is not full holds the first
/// tiles, which see the fewest keys.
template <class Visit>
void for_each_chunk(const SelectPlan& plan, const Front& front, const Visit& visit) {
  for (std::int64_t end = front.num_tiles; end > 0; end -= plan.chunk_tiles) {
    const std::int64_t begin = std::max<std::int64_t>(0, end - plan.chunk_tiles);
    visit(begin, end - begin);
  }
}

/// select_blocks; score(params) launches the scoring of a chunk into the scratch. Of `out` as
/// above.
template <class Score>
void launch_select_blocks(const SelectPlan& plan, const Front& front, const Queries& queries,
                          const topk::TopkParams& out, float* scratch, cudaStream_t stream,
                          const Score& score) {
  Params params = score_params(plan, front, queries);
  params.scores = {.data = scratch, .stride_h = plan.scratch_stride};
  params.columns = plan.columns;
  topk::TopkParams rows = chunk_rows(plan, front, out, scratch);
  for_each_chunk(plan, front, [&](std::int64_t first, std::int64_t tiles) {
    params.tiles.records = rows.tiles.records = front.tiles.records + first;
    params.num_tiles = rows.num_tiles = tiles;
    score(params);
    topk::launch_topk(rows, plan.split_rows, stream);
    ++params.next_item;
  });
}

}  // namespace msa::cuda::common::select
