// SPDX-License-Identifier: MIT
// Block scores, and selection over a bounded scratch of them: scoring and top-k alternate over
// chunks of query tiles.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/common/select/launch.h"
#include "cuda/sm90/select/config.h"

namespace msa::cuda::sm90::select {

using common::select::Front;
using common::select::Queries;
using common::select::ScoresOut;
using common::select::SelectPlan;

/// block_scores. `key_map` has boxes of box_tokens(kTileKeys, page_size) keys.
void launch_block_scores(const SelectPlan& plan, const Front& front, const Queries& queries,
                         const CUtensorMap& key_map, const ScoresOut& out, cudaStream_t stream);

/// select_blocks. Of `out`, the ids, the chosen scores and k are read.
void launch_select_blocks(const SelectPlan& plan, const Front& front, const Queries& queries,
                          const CUtensorMap& key_map, const common::topk::TopkParams& out,
                          float* scratch, cudaStream_t stream);

/// The same by the codes of a filter alone, by a plan that is fast: `code_map` is that of the
/// codes, `bounds` of pages.
void launch_fast_blocks(const SelectPlan& plan, const Front& front, const Queries& queries,
                        const CUtensorMap& code_map, const FilterBounds<const float>& bounds,
                        const common::topk::TopkParams& out, float* scratch, cudaStream_t stream);

/// What a filter's selection reads beside the keys, and its lists of a chunk.
struct Filter {
  CUtensorMap code_map{};  // boxes of box_tokens(kTileKeys, page_size) keys
  FilterBounds<const float> bounds{};
  PartLists lists{};
  Rows<int> candidates{};  // [T, Hi], or none
};

/// The same, bit for bit, by a plan that is filtered. `key_map` has boxes of kPartKeys keys.
void launch_filtered_blocks(const SelectPlan& plan, const Front& front, const Queries& queries,
                            const CUtensorMap& key_map, const Filter& filter,
                            const common::topk::TopkParams& out, float* scratch,
                            cudaStream_t stream);

/// One launch of the scoring kernel; defined in instances/*.cu, one each. `ctas`: one a
/// multiprocessor.
template <Config cfg>
void launch_instance(const Params& params, const CUtensorMap& key_map, int ctas,
                     cudaStream_t stream);

}  // namespace msa::cuda::sm90::select
