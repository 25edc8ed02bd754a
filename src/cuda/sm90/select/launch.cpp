// SPDX-License-Identifier: MIT
// The table of instances, each compiled in a file of its own under instances/, and the launches of
// block_scores and select_blocks.
#include "cuda/sm90/select/launch.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "cuda/sm90/select/candidates.h"
#include "msa/error.h"

namespace msa::cuda::sm90::select {

namespace {

constexpr std::array kInstances = {
    Config{.storage = Storage::Bf16, .dim = 128, .block = 128, .scratch = true},
    Config{.storage = Storage::Bf16, .dim = 128, .block = 64, .scratch = true},
    Config{.storage = Storage::Bf16, .dim = 64, .block = 128, .scratch = true},
    Config{.storage = Storage::Bf16, .dim = 64, .block = 64, .scratch = true},
    Config{.storage = Storage::F16, .dim = 128, .block = 128, .scratch = true},
    Config{.storage = Storage::F16, .dim = 128, .block = 64, .scratch = true},
    Config{.storage = Storage::F16, .dim = 64, .block = 128, .scratch = true},
    Config{.storage = Storage::F16, .dim = 64, .block = 64, .scratch = true},
    Config{.storage = Storage::Bf16, .dim = 128, .block = 128, .scratch = false},
    Config{.storage = Storage::Bf16, .dim = 128, .block = 64, .scratch = false},
    Config{.storage = Storage::Bf16, .dim = 64, .block = 128, .scratch = false},
    Config{.storage = Storage::Bf16, .dim = 64, .block = 64, .scratch = false},
    Config{.storage = Storage::F16, .dim = 128, .block = 128, .scratch = false},
    Config{.storage = Storage::F16, .dim = 128, .block = 64, .scratch = false},
    Config{.storage = Storage::F16, .dim = 64, .block = 128, .scratch = false},
    Config{.storage = Storage::F16, .dim = 64, .block = 64, .scratch = false},
    Config{.storage = Storage::Bf16, .pass = Pass::Codes},
    Config{.storage = Storage::Bf16, .pass = Pass::Listed},
    Config{.storage = Storage::F16, .pass = Pass::Codes},
    Config{.storage = Storage::F16, .pass = Pass::Listed},
    Config{.storage = Storage::Bf16, .block = 128, .pass = Pass::Fast},
    Config{.storage = Storage::Bf16, .block = 64, .pass = Pass::Fast},
    Config{.storage = Storage::F16, .block = 128, .pass = Pass::Fast},
    Config{.storage = Storage::F16, .block = 64, .pass = Pass::Fast},
};

using Launch = void (*)(const Params&, const CUtensorMap&, int, cudaStream_t);

template <std::size_t... kIndices>
constexpr std::array<Launch, sizeof...(kIndices)> launches(std::index_sequence<kIndices...>) {
  return {&launch_instance<kInstances[kIndices]>...};
}

constexpr auto kLaunches = launches(std::make_index_sequence<kInstances.size()>{});

void launch(const Config& config, const Params& params, const CUtensorMap& key_map, int ctas,
            cudaStream_t stream) {
  const auto at = std::find(kInstances.begin(), kInstances.end(), config);
  if (at == kInstances.end())
    throw Error(ErrorCode::Internal, "", "cuda select: planned without an instance");
  kLaunches[static_cast<std::size_t>(at - kInstances.begin())](params, key_map, ctas, stream);
}

Config config_of(const BatchParams& batch, const Queries& queries, bool scratch) {
  return {.storage = queries.storage,
          .dim = queries.dim,
          .block = batch.block_size,
          .scratch = scratch};
}

Params params_of(const SelectPlan& plan, const Front& front, const Queries& queries) {
  return {common::select::score_params(plan, front, queries)};
}

}  // namespace

void launch_block_scores(const SelectPlan& plan, const Front& front, const Queries& queries,
                         const CUtensorMap& key_map, const ScoresOut& out, cudaStream_t stream) {
  Params params = params_of(plan, front, queries);
  params.scores = out.scores;
  params.columns = out.columns;
  launch(config_of(front.batch, queries, false), params, key_map, plan.ctas, stream);
}

void launch_select_blocks(const SelectPlan& plan, const Front& front, const Queries& queries,
                          const CUtensorMap& key_map, const common::topk::TopkParams& out,
                          float* scratch, cudaStream_t stream) {
  const Config config = config_of(front.batch, queries, true);
  common::select::launch_select_blocks(plan, front, queries, out, scratch, stream,
                                       [&](const common::select::Params& params) {
                                         launch(config, {params}, key_map, plan.ctas, stream);
                                       });
}

void launch_fast_blocks(const SelectPlan& plan, const Front& front, const Queries& queries,
                        const CUtensorMap& code_map, const FilterBounds<const float>& bounds,
                        const common::topk::TopkParams& out, float* scratch, cudaStream_t stream) {
  const Config config{
      .storage = queries.storage, .block = front.batch.block_size, .pass = Pass::Fast};
  common::select::launch_select_blocks(plan, front, queries, out, scratch, stream,
                                       [&](const common::select::Params& chunk) {
                                         Params params{chunk};
                                         params.rotated = bounds.rotated;
                                         params.bounds = bounds;
                                         launch(config, params, code_map, plan.ctas, stream);
                                       });
}

void launch_filtered_blocks(const SelectPlan& plan, const Front& front, const Queries& queries,
                            const CUtensorMap& key_map, const Filter& filter,
                            const common::topk::TopkParams& out, float* scratch,
                            cudaStream_t stream) {
  Params codes = params_of(plan, front, queries);
  codes.products = reinterpret_cast<std::uint32_t*>(scratch);
  codes.stride_products = plan.scratch_stride;
  codes.rotated = filter.bounds.rotated;
  Params listed = params_of(plan, front, queries);
  listed.spans = 1;
  listed.scores = {.data = scratch, .stride_h = plan.scratch_stride};
  listed.lists = filter.lists;
  common::topk::TopkParams rows = common::select::chunk_rows(plan, front, out, scratch);
  rows.candidates = {};
  rows.listed = {.blocks = filter.lists.blocks,
                 .sizes = filter.lists.sizes,
                 .stride = filter.lists.stride_blocks};
  CandidateParams candidates{.batch = front.batch,
                             .queries = queries.rows,
                             .storage = queries.storage,
                             .bounds = filter.bounds,
                             .shares = plan.shares,
                             .products = codes.products,
                             .stride_products = plan.scratch_stride,
                             .columns = plan.columns,
                             .lists = filter.lists,
                             .candidates = filter.candidates};
  const auto config = [&](Pass pass) { return Config{.storage = queries.storage, .pass = pass}; };
  common::select::for_each_chunk(plan, front, [&](std::int64_t first, std::int64_t tiles) {
    codes.tiles.records = front.tiles.records + first;
    codes.num_tiles = tiles;
    listed.tiles = rows.tiles = codes.tiles;
    listed.num_tiles = rows.num_tiles = codes.num_tiles;
    candidates.rows = rows;
    listed.next_item = codes.next_item + 1;
    launch(config(Pass::Codes), codes, filter.code_map, plan.ctas, stream);
    launch_candidates(candidates, stream);
    launch(config(Pass::Listed), listed, key_map, plan.ctas, stream);
    common::topk::launch_topk_listed(rows, stream);
    codes.next_item += 2;
  });
}

}  // namespace msa::cuda::sm90::select
