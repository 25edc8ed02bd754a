// SPDX-License-Identifier: MIT
// The table of instances, each compiled in a file of its own under instances/, and the launches of
// block_scores and select_blocks.
#include "cuda/sm90/select/launch.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

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
          .queries = rows,
          .queries_paired = paired};
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
  Params params = score_params(plan, front, queries);
  params.scores = {.data = scratch, .stride_h = plan.scratch_stride};
  params.columns = plan.columns;
  common::topk::TopkParams rows = out;
  rows.tiles = front.tiles;
  rows.groups = plan.groups;
  rows.heads = plan.heads;
  rows.rows_per_group = kTileRows;
  rows.scores = {.data = scratch, .stride_h = plan.scratch_stride};
  rows.columns = plan.columns;
  rows.by_token = false;
  // From the back: the chunk that is not full holds the first tiles, which see the fewest keys.
  for (std::int64_t end = front.num_tiles; end > 0; end -= plan.chunk_tiles) {
    const std::int64_t begin = std::max<std::int64_t>(0, end - plan.chunk_tiles);
    params.tiles.records = rows.tiles.records = front.tiles.records + begin;
    params.num_tiles = rows.num_tiles = end - begin;
    launch(config_of(front.batch, queries, true), params, key_map, plan.ctas, stream);
    common::topk::launch_topk(rows, plan.split_rows, stream);
    ++params.next_item;
  }
}

}  // namespace msa::cuda::sm90::select
