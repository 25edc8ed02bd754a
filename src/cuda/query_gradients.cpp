// SPDX-License-Identifier: MIT
#include "cuda/query_gradients.h"

#include <algorithm>

#include "cuda/attend_stage.h"
#include "cuda/batch.h"
#include "cuda/common/attend/lists.h"
#include "cuda/sm90/backward_queries/launch.h"
#include "cuda/tensor_map.h"
#include "cuda/tuning.h"

namespace msa::cuda {
namespace {

namespace kernel = sm90::backward_queries;
using common::attend::Walk;

constexpr int kLeastTileRows = kernel::kTileRows / 2;  // of tiles that are full, to be worth it

std::int64_t group_of(const Problem& p) { return p.attention.heads_q / p.attention.heads_kv; }

std::int64_t mean_bytes(const KeyTiles::Shape& keys) {
  return keys.all_tiles * keys.heads * kernel::kHeadDim * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace

bool QueryGradients::serves(const Problem& p, const GpuInfo& gpu, const KeyTiles::Shape& keys) {
  if (!AttendStage::rejects(p, keys.listed).empty()) return false;
  if (p.attention.q.storage != DType::BF16 || p.attention.head_dim != kernel::kHeadDim ||
      keys.block != kernel::kBlock)
    return false;
  return AttendStage::tokens_of_tile(p, keys.listed) * group_of(p) >= kLeastTileRows &&
         mean_bytes(keys) <= tuning_for(gpu).sum_bytes;
}

bool QueryGradients::lists_may_share_little(const Problem& p, const KeyTiles::Shape& keys) {
  return keys.listed && 2 * keys.tiles > AttendStage::tokens_of_tile(p, true) * p.selection.topk;
}

QueryGradients::QueryGradients(const Problem& p, const GpuInfo& gpu, const KeyTiles::Shape& keys,
                               Layout& layout)
    : lists_(keys.listed),
      ctas_(std::max(1, gpu.multiprocessors)),
      tokens_per_tile_(AttendStage::tokens_of_tile(p, lists_)),
      max_tiles_(static_cast<int>(
          common::prologue::max_tiles(p.bounds.total_q, p.bounds.batch, tokens_per_tile_))),
      chunk_tiles_(std::max(max_tiles_, 1)),
      heads_outermost_(lists_ || key_bytes(p) > tuning_for(gpu).cached_bytes),
      mean_tiles_(keys.all_tiles),
      heads_kv_(keys.heads) {
  tiles_ = layout.take<common::prologue::TileRecord>(max_tiles_);
  num_tiles_ = layout.take<int>(1);
  suspects_ = layout.take<int>(1 + suspect_words(p.bounds.total_q * heads_kv_));
  means_ = layout.take<float>(heads_kv_ * mean_tiles_ * kernel::kHeadDim);
  if (!lists_) return;
  const std::int64_t entries = heads_kv_ * tokens_per_tile_ * p.selection.topk;  // of a tile
  const std::int64_t fitting =
      tuning_for(gpu).list_bytes /
      (entries * static_cast<std::int64_t>(sizeof(common::attend::ListEntry)));
  chunk_tiles_ = static_cast<int>(std::clamp<std::int64_t>(fitting, 1, chunk_tiles_));
  headers_ = layout.take<common::attend::ListHeader>(heads_kv_ * chunk_tiles_);
  entries_ = layout.take<common::attend::ListEntry>(entries * chunk_tiles_);
}

std::string QueryGradients::decisions() const {
  return "backward_queries " + std::to_string(tokens_per_tile_) + " tokens x group, " +
         std::to_string(kernel::kBlock) + " keys\n";
}

void QueryGradients::ask(common::prologue::Params& front, void* workspace) const {
  const BatchParams& batch = front.batch;
  front.tiles[1] = {.records = tiles_.in(workspace),
                    .most = static_cast<int>(
                        common::prologue::max_tiles(batch.total_q, batch.batch, tokens_per_tile_)),
                    .tokens = tokens_per_tile_,
                    .count = num_tiles_.in(workspace)};
  front.counters[0] = {.data = suspects_.in(workspace),
                       .count = static_cast<int>(1 + suspect_words(batch.total_q * heads_kv_))};
}

const float* QueryGradients::make_means(const core::Call& call,
                                        const common::backward::Pairs& pairs, void* workspace,
                                        cudaStream_t stream) const {
  float* const means = means_.in(workspace);
  common::backward::launch_means(
      {.pairs = pairs, .k = make_rows<const void>(call.k), .means = means, .tiles = mean_tiles_},
      stream);
  return means;
}

Suspects QueryGradients::suspects(void* workspace) const {
  int* const suspects = suspects_.in(workspace);
  return {suspects, reinterpret_cast<unsigned*>(suspects + 1)};
}

void QueryGradients::run(const Problem& problem, const core::Call& call,
                         const common::prologue::Params& front,
                         const common::backward::Pairs& pairs, const float* delta,
                         const int* unwanted, void* workspace, cudaStream_t stream) const {
  const auto k = make_rows<const void>(call.k);
  kernel::Params params = kernel_params(problem, call, front, pairs, delta, workspace);
  params.unwanted = unwanted;
  const int tiles = front.tiles[1].most;
  for (int begin = 0; begin < tiles; begin += chunk_tiles_) {
    params.tile_begin = begin;
    params.tile_limit = std::min(chunk_tiles_, tiles - begin);
    run_tiles(params, call, stream);
  }
  common::backward::launch_mend({.pairs = pairs,
                                 .q = make_rows<const void>(call.q),
                                 .dout = make_rows<const void>(call.dout),
                                 .k = k,
                                 .v = make_rows<const void>(call.v),
                                 .lse = params.lse,
                                 .delta = delta,
                                 .scale = params.scale,
                                 .scale_log2 = params.scale_log2,
                                 .suspects = params.suspects,
                                 .dq = params.to.out,
                                 .f32 = params.to.f32},
                                ctas_, stream);
}

void QueryGradients::run_tiles(const kernel::Params& params, const core::Call& call,
                               cudaStream_t stream) const {
  if (lists_) common::attend::launch_lists(lists_of(params, call.block_ids_in), stream);
  const kernel::Maps maps{
      .q = make_query_map(call.q, heads_kv_, params.group, tokens_per_tile_, "q"),
      .dout = make_query_map(call.dout, heads_kv_, params.group, tokens_per_tile_, "dout"),
      .k = make_key_map(call.k, kernel::kBlock, "k"),
      .v = make_key_map(call.v, kernel::kBlock, "v")};
  kernel::launch(lists_ ? Walk::Union : Walk::Dense, params, maps, ctas_, stream);
}

kernel::Params QueryGradients::kernel_params(const Problem& problem, const core::Call& call,
                                             const common::prologue::Params& front,
                                             const common::backward::Pairs& pairs,
                                             const float* delta, void* workspace) const {
  kernel::Params params;
  params.batch = pairs.batch;
  params.requests = front.requests;
  params.tiles = front.tiles[1].records;
  params.num_tiles = front.tiles[1].count;
  params.tokens_per_tile = tokens_per_tile_;
  params.group = pairs.group;
  params.heads_kv = pairs.heads_kv;
  params.heads_outermost = heads_outermost_;
  params.list_headers = headers_.in(workspace);
  params.list_entries = entries_.in(workspace);
  params.list_capacity = tokens_per_tile_ * static_cast<int>(problem.selection.topk);
  params.to = make_rows_out(call.dq, {});
  params.scale = scale_of(problem);
  params.scale_log2 = scale_log2_of(problem);
  params.suspects = suspects(workspace);
  params.first_blocks = front.first_blocks;
  params.means = means_.in(workspace);
  params.mean_blocks = mean_tiles_;
  params.lse = make_rows<const float>(call.lse_in);
  params.delta = delta;
  return params;
}

}  // namespace msa::cuda
