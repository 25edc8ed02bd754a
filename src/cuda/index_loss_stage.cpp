// SPDX-License-Identifier: MIT
#include "cuda/index_loss_stage.h"

#include <algorithm>
#include <cmath>

#include "core/fields.h"
#include "core/geometry.h"
#include "cuda/attend_stage.h"
#include "cuda/batch.h"
#include "cuda/mma/index_loss/launch.h"
#include "cuda/sm90/index_loss/launch.h"
#include "cuda/tensor_map.h"
#include "cuda/tuning.h"

namespace msa::cuda {
namespace {

using core::ceil_div;

bool takes_lists(const Problem& p) { return p.selection.topk > 0; }

float index_scale_of(const Problem& p) {
  return p.index.scale.value_or(
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(p.index.dim))));
}

/// Bytes of what one tile gives to a token and index head.
std::int64_t slot_bytes(const mma::index_loss::Config& config) {
  return config.index_dim * 2 + config.index_dim / mma::index_loss::part_dims(config) * 4 + 4 +
         static_cast<std::int64_t>(sizeof(common::backward::StudentShare));
}

/// Numbers of a tile's d_index_k.
std::int64_t tile_items(const mma::index_loss::Config& config) {
  return std::int64_t{config.keys} * config.index_dim;
}

constexpr int kMmaKeys = mma::index_loss::Config{}.keys;

void launch_mma(const mma::index_loss::Config& config, const mma::index_loss::Params& params,
                const core::Call&, int ctas, cudaStream_t stream) {
  mma::index_loss::launch(config, params, ctas, stream);
}

bool serves_sm90(const Problem& p) {
  return sm90::index_loss::serves(
      storage_of(p.attention.q.storage), p.attention.head_dim, p.index.dim,
      p.attention.heads_q / p.attention.heads_kv,
      takes_lists(p) ? p.selection.block_size : sm90::index_loss::kTile.keys);
}

void launch_sm90(const mma::index_loss::Config& config, const mma::index_loss::Params& params,
                 const core::Call& call, int ctas, cudaStream_t stream) {
  if (config != sm90::index_loss::kTile) return launch_mma(config, params, call, ctas, stream);
  const sm90::index_loss::Maps maps{
      .q = make_query_map(call.q, params.pairs.heads_kv, sm90::index_loss::kGroup, 1, "q")};
  sm90::index_loss::launch(params, maps, ctas, stream);
}

}  // namespace

IndexLossStage::Shape::Shape(const Problem& p, const GpuInfo& gpu, int tile_keys)
    : config{.storage = storage_of(p.attention.q.storage),
             .head_dim = static_cast<int>(p.attention.head_dim),
             .index_dim = static_cast<int>(p.index.dim),
             .keys = tile_keys},
      keys(p, takes_lists(p), config.keys),
      cut{.group = p.attention.heads_q / p.attention.heads_kv,
          .ctas = std::max(1, gpu.multiprocessors) *
                  std::int64_t{KeyTiles::ctas_per_sm(mma::index_loss::shared_bytes(config),
                                                     config.keys, gpu.shared_memory)}} {
  const Tuning tuning = tuning_for(gpu);
  // Heads that share tiles each have a part of them: 4 heads of 128K keys fit.
  cut.max_parts = 2 * tuning.part_bytes / (tile_items(config) * 4);
  most_sums = tuning.share_bytes;
  const std::int64_t rows = std::max<std::int64_t>(1, p.bounds.total_q);
  // Shares are small: half of the room makes chunks long enough.
  const std::int64_t fitting = std::max<std::int64_t>(
      1, tuning.share_bytes / 2 / (slot_bytes(config) * keys.places * keys.heads));
  chunk_rows = ceil_div(rows, ceil_div(rows, fitting));  // equally large
  student_cut = cut;
  shared_heads = static_cast<int>(p.index.heads / p.index.heads_k);
  const bool at_once = shared_heads <= common::backward::kMostHeadsAtOnce &&
                       KeyTiles::whole_items(keys, chunk_rows, cut) <= cut.max_parts / 2;
  heads_at_once = at_once ? shared_heads : 1;
  cut.shared_tiles = heads_at_once > 1;
  if (!at_once) cut.heads = p.index.heads_k;
}

std::string IndexLossStage::rejects(const Problem& p, const GpuInfo& gpu) {
  for (const DType storage : {p.attention.q.storage, p.index.q.storage}) {
    if (storage == DType::BF16) continue;
    return std::string("q and index_q are bf16 here, not ") + to_string(storage) +
           (storage == DType::F16 ? ": weighted gradients may be below f16" : "");
  }
  if (p.attention.head_dim != 64 && p.attention.head_dim != 128)
    return "head_dim is 64 or 128 here, not " + std::to_string(p.attention.head_dim);
  if (p.index.dim != 64 && p.index.dim != 128)
    return "index_dim is 64 or 128 here, not " + std::to_string(p.index.dim);
  if (p.options.batch_invariant) return "sums of index_loss depend on the batch here";
  if (std::string why = KeyTiles::rejects_blocks(p, takes_lists(p)); !why.empty()) return why;
  const Shape shape(p, gpu, kMmaKeys);
  if (shape.cut.group > mma::index_loss::kMostGroup)
    return "at most " + std::to_string(mma::index_loss::kMostGroup) +
           " query heads share a KV head, not " + std::to_string(shape.cut.group);
  if (std::string why = KeyTiles::rejects(p, shape.keys); !why.empty()) return why;
  if (shape.keys.all_tiles * p.index.heads_k * tile_items(shape.config) * 4 > shape.most_sums)
    return "sums of d_index_k, of requests that are all as long as the longest one, would need "
           "more "
           "than " +
           std::to_string(shape.most_sums >> 20) + " MiB";
  return "";
}

IndexLossStage::IndexLossStage(const Problem& p, const GpuInfo& gpu, Layout& layout)
    : IndexLossStage(p, gpu, layout, kMmaKeys, launch_mma) {}

IndexLossStage::IndexLossStage(const Problem& p, const GpuInfo& gpu, Layout& layout, int keys,
                               Launch launch)
    : IndexLossStage(p, Shape(p, gpu, keys), layout, launch) {}

Sm90IndexLossStage::Sm90IndexLossStage(const Problem& p, const GpuInfo& gpu, Layout& layout)
    : IndexLossStage(p, gpu, layout, serves_sm90(p) ? sm90::index_loss::kTile.keys : kMmaKeys,
                     launch_sm90) {}

IndexLossStage::IndexLossStage(const Problem& p, const Shape& shape, Layout& layout, Launch launch)
    : shape_(shape),
      launch_(launch),
      tiles_(p, shape.keys,
             KeyTiles::larger(KeyTiles::most(shape.keys, shape.chunk_rows, shape.cut),
                              KeyTiles::most(shape.keys, shape.chunk_rows, shape.student_cut)),
             layout),
      student_lse_(layout.take<float>(p.bounds.total_q * p.index.heads)) {
  Layout inverse = layout;
  tiles_.plan_inverse(p, inverse);
  const std::int64_t slots = shape.chunk_rows * shape.keys.heads * shape.keys.places;
  student_shares_ = layout.take<common::backward::StudentShare>(slots);
  loss_shares_ = layout.take<float>(slots);
  steps_ = layout.take<std::uint16_t>(slots * p.index.dim);
  step_sizes_ =
      layout.take<float>(slots * (p.index.dim / mma::index_loss::part_dims(shape.config)));
  parts_ = layout.take<float>(KeyTiles::most(shape.keys, shape.chunk_rows, shape.cut).max_parts *
                              tile_items(shape.config));
  sums_ = layout.take<float>(shape.keys.all_tiles * p.index.heads_k * tile_items(shape.config));
  layout.extend(inverse.bytes());
}

std::string IndexLossStage::decisions() const {
  return "index_loss_tile " + std::to_string(shape_.config.keys) + " keys x " +
         std::to_string(mma::index_loss::kTokens) + " tokens\nindex_loss_chunk " +
         std::to_string(shape_.chunk_rows) + " tokens\nindex_loss_heads_at_once " +
         std::to_string(shape_.heads_at_once) + " of " + std::to_string(shape_.shared_heads) + "\n";
}

void IndexLossStage::run(const Problem& problem, const core::Call& call, void* workspace,
                         cudaStream_t stream) const {
  const Storage storage = storage_of(problem.index.q.storage);
  common::backward::Pairs pairs =
      tiles_.run(problem, call, tiles_.front(problem, call, workspace), workspace, stream);
  pairs.tensors = 1;
  pairs.shared_heads = shape_.shared_heads;
  pairs.heads_at_once = shape_.heads_at_once;
  const common::backward::KeyParams keys = key_params(problem, call, pairs, workspace);
  if (call.d_index_k) {
    if (!problem.gradients.accumulate) common::backward::launch_clear(storage, keys, stream);
    const std::int64_t floats =
        shape_.keys.all_tiles * problem.index.heads_k * tile_items(shape_.config);
    MSA_CUDA_CHECK(cudaMemsetAsync(sums_.in(workspace), 0,
                                   static_cast<std::size_t>(floats) * sizeof(float), stream));
  }
  const std::int64_t rows = pairs.batch.total_q;
  for (std::int64_t begin = 0; begin < rows; begin += shape_.chunk_rows) {
    pairs.row_begin = begin;
    pairs.row_end = std::min(begin + shape_.chunk_rows, rows);
    run_rows(problem, call, pairs, workspace, stream);
  }
  if (call.d_index_k) common::backward::launch_finish(storage, keys, shape_.keys.all_tiles, stream);
}

common::backward::KeyParams IndexLossStage::key_params(const Problem& problem,
                                                       const core::Call& call,
                                                       const common::backward::Pairs& pairs,
                                                       void* workspace) const {
  return {.pairs = pairs,
          .parts = parts_.in(workspace),
          .sums = {.data = sums_.in(workspace), .tiles = shape_.keys.all_tiles},
          .head_dim = static_cast<int>(problem.index.dim),
          .rows = call.index_k.shape[0],
          .dk = {.rows = make_rows<void>(call.d_index_k),
                 .f32 = problem.gradients.dtype == DType::F32 ? 1 : 0,
                 .accumulate = problem.gradients.accumulate ? 1 : 0}};
}

/// Of the launch that makes losses and gradients; pairs and work are its own.
mma::index_loss::Params IndexLossStage::params_of(const Problem& problem, const core::Call& call,
                                                  void* workspace) const {
  const float index_scale = index_scale_of(problem);
  mma::index_loss::Params params{
      .group = static_cast<int>(shape_.cut.group),
      .index_heads = static_cast<int>(problem.index.heads / problem.index.heads_k),
      .q = make_rows<const void>(call.q),
      .k = make_key_rows<const std::uint16_t>(call.k),
      .lse = make_rows<const float>(call.lse_in),
      .index_q = make_rows<const void>(call.index_q),
      .index_k = make_key_rows<const std::uint16_t>(call.index_k),
      .weights = static_cast<const float*>(call.row_weight.data),
      .stride_weights = call.row_weight ? call.row_weight.stride[0] : 0,
      .scale_log2 = scale_log2_of(problem),
      .index_scale = index_scale,
      .index_scale_log2 = static_cast<float>(index_scale * 1.4426950408889634),
      .student_lse = student_lse_.in(workspace),
      .parts = parts_.in(workspace)};
  if (call.loss) params.loss_shares = loss_shares_.in(workspace);
  if (call.d_index_q) {
    params.shares = {.steps = steps_.in(workspace),
                     .sizes = step_sizes_.in(workspace),
                     .part_dims = mma::index_loss::part_dims(shape_.config)};
  }
  if (call.d_index_k) params.sums = {.data = sums_.in(workspace), .tiles = shape_.keys.all_tiles};
  return params;
}

/// The student's logarithms.
void IndexLossStage::run_student(const core::Call& call, const mma::index_loss::Params& gradients,
                                 const common::backward::LossParams& rows, int ctas,
                                 void* workspace, cudaStream_t stream) const {
  mma::index_loss::Params student = gradients;
  student.pairs = rows.pairs;
  student.work = tiles_.work(
      KeyTiles::limits(shape_.keys, rows.pairs.row_end - rows.pairs.row_begin, shape_.student_cut),
      workspace);
  student.work.splits = nullptr;
  student.student_shares = rows.student_shares;
  student.student_lse = nullptr;
  common::backward::launch_items(student.pairs, student.work, shape_.keys.all_tiles, stream);
  launch_(shape_.config, student, call, ctas, stream);
  common::backward::launch_students(rows, stream);
}

void IndexLossStage::run_rows(const Problem& problem, const core::Call& call,
                              const common::backward::Pairs& pairs, void* workspace,
                              cudaStream_t stream) const {
  const Storage storage = storage_of(problem.index.q.storage);
  const auto ctas = static_cast<int>(shape_.cut.ctas);
  mma::index_loss::Params params = params_of(problem, call, workspace);
  params.pairs = pairs;
  params.work = tiles_.work(
      KeyTiles::limits(shape_.keys, pairs.row_end - pairs.row_begin, shape_.cut), workspace);
  common::backward::LossParams rows{.pairs = pairs,
                                    .student_shares = student_shares_.in(workspace),
                                    .student_lse = student_lse_.in(workspace),
                                    .loss_shares = params.loss_shares,
                                    .loss = make_rows<float>(call.loss)};
  // All heads in one launch, each with tiles of its own.
  rows.pairs.shared_heads = rows.pairs.heads_at_once = 1;
  run_student(call, params, rows, ctas, workspace, stream);

  if (!call.d_index_k) params.work.splits = nullptr;
  // Heads that share a head of keys take turns with its sums where there is no room for all parts.
  for (int turn = 0; turn < pairs.shared_heads; turn += pairs.heads_at_once) {
    params.pairs.turn = turn;
    common::backward::launch_items(params.pairs, params.work, shape_.keys.all_tiles, stream);
    launch_(shape_.config, params, call, ctas, stream);
    if (!call.d_index_k) continue;
    common::backward::KeyParams keys = key_params(problem, call, params.pairs, workspace);
    keys.work = params.work;
    common::backward::launch_join(storage, keys, ctas, stream);
  }
  if (call.loss) common::backward::launch_losses(rows, stream);
  if (!call.d_index_q) return;
  common::backward::launch_queries(
      {.pairs = rows.pairs,
       .shares = params.shares,
       .head_dim = static_cast<int>(problem.index.dim),
       .lse = {.data = student_lse_.in(workspace), .stride_t = pairs.heads_kv, .stride_h = 1},
       .scale = params.index_scale,
       .weights = params.weights,
       .stride_weights = params.stride_weights,
       .dq = make_rows<void>(call.d_index_q),
       .f32 = problem.gradients.dtype == DType::F32 ? 1 : 0},
      stream);
}

}  // namespace msa::cuda
