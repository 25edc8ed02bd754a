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

common::topk::TopkParams chunk_rows(const SelectPlan& plan, const Front& front,
                                    const common::topk::TopkParams& out, const float* scratch) {
  common::topk::TopkParams rows = out;
  rows.tiles = front.tiles;
  rows.groups = plan.groups;
  rows.heads = plan.heads;
  rows.rows_per_group = kTileRows;
  rows.scores = {.data = scratch, .stride_h = plan.scratch_stride};
  rows.columns = plan.columns;
  rows.by_token = false;
  return rows;
}

/// Scores of a chunk of tiles, then what its rows choose, chunk after chunk. From the back: the
/// chunk that is not full holds the first tiles, which see the fewest keys.
void launch_chunks(const Config& config, const SelectPlan& plan, const Front& front, Params params,
                   const CUtensorMap& key_map, const common::topk::TopkParams& out, float* scratch,
                   cudaStream_t stream) {
  params.scores = {.data = scratch, .stride_h = plan.scratch_stride};
  params.columns = plan.columns;
  common::topk::TopkParams rows = chunk_rows(plan, front, out, scratch);
  for (std::int64_t end = front.num_tiles; end > 0; end -= plan.chunk_tiles) {
    const std::int64_t begin = std::max<std::int64_t>(0, end - plan.chunk_tiles);
    params.tiles.records = rows.tiles.records = front.tiles.records + begin;
    params.num_tiles = rows.num_tiles = end - begin;
    launch(config, params, key_map, plan.ctas, stream);
    common::topk::launch_topk(rows, plan.split_rows, stream);
    ++params.next_item;
  }
}

}  // namespace

void launch_block_scores(const SelectPlan& plan, const Front& front, const Queries& queries,
                         const CUtensorMap& key_map, const ScoresOut& out, cudaStream_t stream) {
  Params params = score_params(plan, front, queries);
  params.scores = out.scores;
  params.columns = out.columns;
  launch(config_of(front.batch, queries, false), params, key_map, plan.ctas, stream);
}

void launch_select_blocks(const SelectPlan& plan, const Front& front, const Queries& queries,
                          const CUtensorMap& key_map, const common::topk::TopkParams& out,
                          float* scratch, cudaStream_t stream) {
  launch_chunks(config_of(front.batch, queries, true), plan, front,
                score_params(plan, front, queries), key_map, out, scratch, stream);
}

void launch_fast_blocks(const SelectPlan& plan, const Front& front, const Queries& queries,
                        const CUtensorMap& code_map, const FilterBounds<const float>& bounds,
                        const common::topk::TopkParams& out, float* scratch, cudaStream_t stream) {
  Params params = score_params(plan, front, queries);
  params.bounds = bounds;
  params.rotated = bounds.rotated;
  const Config config{
      .storage = queries.storage, .block = front.batch.block_size, .pass = Pass::Fast};
  launch_chunks(config, plan, front, params, code_map, out, scratch, stream);
}

void launch_filtered_blocks(const SelectPlan& plan, const Front& front, const Queries& queries,
                            const CUtensorMap& key_map, const Filter& filter,
                            const common::topk::TopkParams& out, float* scratch,
                            cudaStream_t stream) {
  Params codes = score_params(plan, front, queries);
  codes.products = reinterpret_cast<std::uint32_t*>(scratch);
  codes.stride_products = plan.scratch_stride;
  codes.rotated = filter.bounds.rotated;
  Params listed = score_params(plan, front, queries);
  listed.spans = 1;
  listed.scores = {.data = scratch, .stride_h = plan.scratch_stride};
  listed.lists = filter.lists;
  common::topk::TopkParams rows = chunk_rows(plan, front, out, scratch);
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
  // From the back, as above.
  for (std::int64_t end = front.num_tiles; end > 0; end -= plan.chunk_tiles) {
    const std::int64_t begin = std::max<std::int64_t>(0, end - plan.chunk_tiles);
    codes.tiles.records = front.tiles.records + begin;
    codes.num_tiles = end - begin;
    listed.tiles = rows.tiles = codes.tiles;
    listed.num_tiles = rows.num_tiles = codes.num_tiles;
    candidates.rows = rows;
    listed.next_item = codes.next_item + 1;
    launch(config(Pass::Codes), codes, filter.code_map, plan.ctas, stream);
    launch_candidates(candidates, stream);
    launch(config(Pass::Listed), listed, key_map, plan.ctas, stream);
    common::topk::launch_topk_listed(rows, stream);
    codes.next_item += 2;
  }
}

}  // namespace msa::cuda::sm90::select
