// SPDX-License-Identifier: MIT
#include "cuda/common/select/launch.h"

namespace msa::cuda::common::select {

Params score_params(const SelectPlan& plan, const Front& front, const Queries& queries) {
  const Rows<const void>& rows = queries.rows;
  const bool paired = reinterpret_cast<std::uintptr_t>(rows.data) % 4 == 0 &&
                      rows.stride_t % 2 == 0 && rows.stride_h % 2 == 0;
  return {.batch = front.batch,
          .tiles = front.tiles,
          .num_tiles = front.num_tiles,
          .next_item = front.next_items,
          .span = plan.span,
          .spans = plan.spans,
          .groups = plan.groups,
          .tile_major = plan.tile_major,
          .heads = plan.heads,
          .shares = plan.shares,
          .queries = rows,
          .queries_paired = paired};
}

topk::TopkParams chunk_rows(const SelectPlan& plan, const Front& front, const topk::TopkParams& out,
                            const float* scratch) {
  topk::TopkParams rows = out;
  rows.tiles = front.tiles;
  rows.groups = plan.groups;
  rows.heads = plan.heads;
  rows.rows_per_group = kTileRows;
  rows.scores = {.data = scratch, .stride_h = plan.scratch_stride};
  rows.columns = plan.columns;
  rows.by_token = false;
  return rows;
}

}  // namespace msa::cuda::common::select
