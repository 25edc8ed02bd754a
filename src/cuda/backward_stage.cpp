// SPDX-License-Identifier: MIT
#include "cuda/backward_stage.h"

#include <algorithm>

#include "core/geometry.h"
#include "cuda/attend_stage.h"
#include "cuda/batch.h"
#include "cuda/mma/backward/launch.h"
#include "cuda/sm90/backward/launch.h"
#include "cuda/sm90/backward_shares/launch.h"
#include "cuda/tensor_map.h"
#include "cuda/tuning.h"

namespace msa::cuda {
namespace {

using core::ceil_div;

// Of work items with batch_invariant, whatever the batch.
constexpr std::int64_t kInvariantRows = 65536;

bool walks_lists(const Problem& p) { return p.op == Op::SparseAttentionBackward; }

/// Numbers of a tile's dk and dv.
std::int64_t tile_sums(const mma::backward::Config& config) {
  return std::int64_t{2} * config.keys * config.head_dim;
}

/// Bytes of a share of dq.
std::int64_t slot_bytes(const mma::backward::Config& config, std::int64_t group) {
  return group * (config.head_dim * 2 + config.head_dim / mma::backward::part_dims(config) * 4);
}

void launch_mma(const mma::backward::Config& config, const mma::backward::Params& params,
                const core::Call&, int ctas, cudaStream_t stream) {
  mma::backward::launch(config, params, ctas, stream);
}

sm90::backward::Maps row_maps(const mma::backward::Params& params, const core::Call& call) {
  const int box_shift = sm90::backward::box_shift(params.pairs.group);
  return {.q = make_query_map(call.q, params.pairs.heads_kv, 1 << box_shift, 1, "q"),
          .dout = make_query_map(call.dout, params.pairs.heads_kv, 1 << box_shift, 1, "dout"),
          .box_shift = box_shift};
}

void launch_shares(const mma::backward::Params& params, const float* means, std::int64_t mean_tiles,
                   const core::Call& call, int ctas, cudaStream_t stream) {
  sm90::backward_shares::launch({params, means, mean_tiles}, row_maps(params, call), ctas, stream);
}

void launch_sm90(const mma::backward::Config& config, const mma::backward::Params& params,
                 const core::Call& call, int ctas, cudaStream_t stream) {
  if (!sm90::backward::serves(config, params))
    return launch_mma(config, params, call, ctas, stream);
  sm90::backward::launch(params, row_maps(params, call), ctas, stream);
}

}  // namespace

BackwardStage::Shape::Shape(const Problem& p, const GpuInfo& gpu, bool by_rows)
    : config(mma::backward::config_for(
          storage_of(p.attention.q.storage), static_cast<int>(p.attention.head_dim),
          walks_lists(p) ? static_cast<int>(p.selection.block_size) : 0, gpu.shared_memory)),
      keys(p, walks_lists(p), config.keys),
      cut{.group = p.attention.heads_q / p.attention.heads_kv,
          .ctas = std::max(1, gpu.multiprocessors) *
                  std::int64_t{KeyTiles::ctas_per_sm(mma::backward::shared_bytes(config),
                                                     config.keys, gpu.shared_memory)}} {
  const Tuning tuning = tuning_for(gpu);
  const std::int64_t sum_bytes = tile_sums(config) * 4;
  // Those of batch_invariant are made before there are shares, in their place.
  cut.max_parts = (p.options.batch_invariant ? tuning.share_bytes : tuning.part_bytes) / sum_bytes;
  if (p.options.batch_invariant) cut.item_rows = kInvariantRows;
  const std::int64_t rows = std::max<std::int64_t>(1, p.bounds.total_q);
  const std::int64_t fitting = std::max<std::int64_t>(
      1, tuning.share_bytes / (slot_bytes(config, cut.group) * keys.places * keys.heads));
  if (by_rows && QueryGradients::serves(p, gpu, keys)) {
    order = Order::Rows;
    chunk_rows = rows;
    if (QueryGradients::lists_may_share_little(p, keys) &&
        sm90::backward::box_shift(cut.group) != 0)
      share_rows = ceil_div(rows, ceil_div(rows, fitting));
    return;
  }
  chunk_rows = ceil_div(rows, ceil_div(rows, fitting));  // equally large
  // Where chunks end depends on the rows of other requests.
  const bool sums_fit = keys.all_tiles * keys.heads * sum_bytes <= tuning.sum_bytes;
  order = chunk_rows >= rows                       ? Order::Once
          : sums_fit && !p.options.batch_invariant ? Order::Summed
                                                   : Order::Twice;
}

KeyTiles::Limits BackwardStage::Shape::most(const Problem& p) const {
  return KeyTiles::larger(KeyTiles::most(keys, p.bounds.total_q, cut),
                          KeyTiles::most(keys, chunk_rows, cut));
}

std::string BackwardStage::rejects(const Problem& p, const GpuInfo& gpu) {
  const DType storage = p.attention.q.storage;
  if (storage != DType::BF16) {
    return std::string("gradients are for bf16 here, not ") + to_string(storage) +
           (storage == DType::F16 ? ": those of scores may be beyond f16" : "");
  }
  if (p.outputs.dtype != storage)
    return std::string("out and dout are stored as q is here, not as ") +
           to_string(p.outputs.dtype);
  if (p.attention.head_dim != 64 && p.attention.head_dim != 128)
    return "head_dim is 64 or 128 here, not " + std::to_string(p.attention.head_dim);
  if (p.attention.value_dim != p.attention.head_dim)
    return "value_dim equals head_dim here, not " + std::to_string(p.attention.value_dim);
  if (std::string why = KeyTiles::rejects_blocks(p, walks_lists(p)); !why.empty()) return why;
  const Shape shape(p, gpu, false);
  if (std::string why = KeyTiles::rejects(p, shape.keys); !why.empty()) return why;
  if (p.options.batch_invariant &&
      KeyTiles::limits(shape.keys, p.bounds.total_q, shape.cut).item_tokens >
          ceil_div(kInvariantRows, shape.cut.group))
    return "too many rows for batch_invariant: sums of long lists would need too much memory";
  return "";
}

BackwardStage::BackwardStage(const Problem& p, const GpuInfo& gpu, Layout& layout)
    : BackwardStage(p, gpu, layout, launch_mma, false) {}

BackwardStage::BackwardStage(const Problem& p, const GpuInfo& gpu, Layout& layout, Launch launch,
                             bool by_rows)
    : BackwardStage(p, gpu, Shape(p, gpu, by_rows), layout, launch) {}

Sm90BackwardStage::Sm90BackwardStage(const Problem& p, const GpuInfo& gpu, Layout& layout)
    : BackwardStage(p, gpu, layout, p.options.batch_invariant ? launch_mma : launch_sm90,
                    !p.options.batch_invariant) {}

BackwardStage::BackwardStage(const Problem& p, const GpuInfo& gpu, const Shape& shape,
                             Layout& layout, Launch launch)
    : shape_(shape),
      launch_(launch),
      tiles_(p, shape.keys, shape.most(p), layout),
      delta_(layout.take<float>(p.bounds.total_q * p.attention.heads_q)) {
  if (shape_.order == Order::Rows) queries_.emplace(p, gpu, shape_.keys, layout);
  Layout inverse = layout;
  tiles_.plan_inverse(p, inverse);
  plan_sums(p, layout);
  layout.extend(inverse.bytes());
}

void BackwardStage::plan_sums(const Problem& p, Layout& layout) {
  const std::int64_t floats = tile_sums(shape_.config);
  const std::int64_t rows = shape_.order == Order::Rows ? shape_.share_rows : shape_.chunk_rows;
  const std::int64_t slots = rows * shape_.keys.heads * shape_.keys.places;
  const std::int64_t shares = slots * shape_.cut.group * p.attention.head_dim;
  // Of Rows and Twice, dk and dv of all rows are done with before dq begins.
  Layout parts = layout;
  parts_ = parts.take<float>(shape_.most(p).max_parts * floats);
  if (shape_.order == Order::Once || shape_.order == Order::Summed) layout = parts;
  share_little_ = layout.take<int>(1);
  steps_ = layout.take<std::uint16_t>(shares);
  step_sizes_ = layout.take<float>(shares / mma::backward::part_dims(shape_.config));
  if (shape_.order == Order::Summed)
    sums_ = layout.take<float>(shape_.keys.all_tiles * shape_.keys.heads * floats);
  layout.extend(parts.bytes());
}

std::string BackwardStage::decisions() const {
  const char* const orders[] = {"rows", "once", "summed", "twice"};
  std::string text = "backward_tile " + std::to_string(shape_.config.keys) + " keys x " +
                     std::to_string(shape_.config.rows) + " rows\nbackward_chunk " +
                     std::to_string(shape_.chunk_rows) + " tokens\nbackward_order " +
                     orders[static_cast<int>(shape_.order)] + "\n";
  if (queries_) text += queries_->decisions();
  if (shape_.share_rows != 0)
    text += "backward_shares " + std::to_string(shape_.share_rows) + " tokens\n";
  return text;
}

void BackwardStage::run(const Problem& problem, const core::Call& call, void* workspace,
                        cudaStream_t stream) const {
  common::prologue::Params front = tiles_.front(problem, call, workspace);
  if (queries_) queries_->ask(front, workspace);
  common::backward::Pairs pairs = tiles_.run(problem, call, front, workspace, stream);
  pairs.group = static_cast<int>(shape_.cut.group);
  const common::backward::KeyParams all = key_params(problem, call, pairs, workspace);
  prepare(problem, call, all, workspace, stream);
  const std::int64_t rows = pairs.batch.total_q;
  const bool queries = static_cast<bool>(call.dq);
  const bool keys = call.dk || call.dv;
  const bool apart = keys && (!queries || queries_ || shape_.order == Order::Twice);
  const bool summed = keys && !apart && shape_.order == Order::Summed;
  if (apart)
    run_rows(problem, call, pairs, {.begin = 0, .end = rows, .keys = true}, workspace, stream);
  if (queries && queries_) return run_queries(problem, call, front, pairs, workspace, stream);
  for (std::int64_t begin = 0; queries && begin < rows; begin += shape_.chunk_rows) {
    run_rows(problem, call, pairs,
             {.begin = begin,
              .end = std::min(begin + shape_.chunk_rows, rows),
              .queries = true,
              .keys = keys && !apart,
              .summed = summed},
             workspace, stream);
  }
  if (!summed) return;
  common::backward::KeyParams sums = all;
  sums.sums = sums_of(workspace);
  common::backward::launch_finish(storage_of(problem.attention.q.storage), sums,
                                  shape_.keys.all_tiles, stream);
}

/// dq by rows; over lists that share little, chunk by chunk, by shares of tiles of keys: lists are
/// known on the device alone, where one of both finds nothing to do.
void BackwardStage::run_queries(const Problem& problem, const core::Call& call,
                                const common::prologue::Params& front,
                                const common::backward::Pairs& pairs, void* workspace,
                                cudaStream_t stream) const {
  const float* const means = queries_->make_means(call, pairs, workspace, stream);
  int* const little = shape_.share_rows != 0 ? share_little_.in(workspace) : nullptr;
  if (little != nullptr) {
    common::backward::launch_overlap(
        {.pairs = pairs, .tokens = queries_->tokens_per_tile(), .little = little}, stream);
    const std::int64_t rows = pairs.batch.total_q;
    for (std::int64_t begin = 0; begin < rows; begin += shape_.share_rows) {
      run_rows(problem, call, pairs,
               {.begin = begin,
                .end = std::min(begin + shape_.share_rows, rows),
                .queries = true,
                .wanted = little,
                .means = means},
               workspace, stream);
    }
  }
  queries_->run(problem, call, front, pairs, delta_.in(workspace), little, workspace, stream);
}

/// What all launches need.
void BackwardStage::prepare(const Problem& problem, const core::Call& call,
                            const common::backward::KeyParams& keys, void* workspace,
                            cudaStream_t stream) const {
  const Storage storage = storage_of(problem.attention.q.storage);
  common::backward::launch_delta({.rows = keys.pairs.batch.total_q,
                                  .heads = static_cast<int>(problem.attention.heads_q),
                                  .head_dim = static_cast<int>(problem.attention.head_dim),
                                  .out = make_rows<const void>(call.out_in),
                                  .dout = make_rows<const void>(call.dout),
                                  .dlse = make_rows<const float>(call.dlse),
                                  .delta = delta_.in(workspace)},
                                 stream);
  if (!problem.gradients.accumulate) common::backward::launch_clear(storage, keys, stream);
  if (shape_.order != Order::Summed) return;
  const std::int64_t floats = shape_.keys.all_tiles * shape_.keys.heads * tile_sums(shape_.config);
  MSA_CUDA_CHECK(cudaMemsetAsync(sums_.in(workspace), 0,
                                 static_cast<std::size_t>(floats) * sizeof(float), stream));
}

void BackwardStage::run_rows(const Problem& problem, const core::Call& call,
                             const common::backward::Pairs& all, const Rows& rows, void* workspace,
                             cudaStream_t stream) const {
  const Storage storage = storage_of(problem.attention.q.storage);
  common::backward::KeyParams keys = key_params(problem, call, all, workspace);
  keys.pairs.row_begin = rows.begin;
  keys.pairs.row_end = rows.end;
  keys.work =
      tiles_.work(KeyTiles::limits(shape_.keys, rows.end - rows.begin, shape_.cut), workspace);
  keys.work.wanted = rows.wanted;
  if (rows.summed) keys.sums = sums_of(workspace);
  if (!rows.keys) {
    keys.work.splits = nullptr;
    keys.dk = keys.dv = {};
  }
  common::backward::launch_items(keys.pairs, keys.work, shape_.keys.all_tiles, stream);
  mma::backward::Params params{.pairs = keys.pairs,
                               .work = keys.work,
                               .q = make_rows<const void>(call.q),
                               .dout = make_rows<const void>(call.dout),
                               .k = make_key_rows<const std::uint16_t>(call.k),
                               .v = make_key_rows<const std::uint16_t>(call.v),
                               .lse = make_rows<const float>(call.lse_in),
                               .delta = delta_.in(workspace),
                               .scale = scale_of(problem),
                               .scale_log2 = scale_log2_of(problem),
                               .parts = parts_.in(workspace),
                               .sums = keys.sums,
                               .dk = keys.dk,
                               .dv = keys.dv};
  if (rows.queries) params.shares = shares_of(workspace);
  const auto ctas = static_cast<int>(shape_.cut.ctas);
  if (rows.means != nullptr) {
    launch_shares(params, rows.means, queries_->mean_tiles(), call, ctas, stream);
  } else {
    launch_(shape_.config, params, call, ctas, stream);
  }
  if (rows.keys) common::backward::launch_join(storage, keys, ctas, stream);
  if (!rows.queries) return;
  common::backward::launch_queries(
      {.pairs = keys.pairs,
       .shares = params.shares,
       .head_dim = keys.head_dim,
       .lse = params.lse,
       .scale = params.scale,
       .dq = make_rows<void>(call.dq),
       .f32 = problem.gradients.dtype == DType::F32 ? 1 : 0,
       .wanted = rows.wanted,
       .suspects = rows.means != nullptr ? queries_->suspects(workspace) : Suspects{},
       .delta = params.delta},
      stream);
}

common::backward::KeyParams BackwardStage::key_params(const Problem& problem,
                                                      const core::Call& call,
                                                      const common::backward::Pairs& pairs,
                                                      void* workspace) const {
  const auto rows_out = [&](const Tensor& tensor) {
    return common::backward::KeyRowsOut{.rows = make_rows<void>(tensor),
                                        .f32 = problem.gradients.dtype == DType::F32 ? 1 : 0,
                                        .accumulate = problem.gradients.accumulate ? 1 : 0};
  };
  return {.pairs = pairs,
          .parts = parts_.in(workspace),
          .head_dim = static_cast<int>(problem.attention.head_dim),
          .rows = call.k.shape[0],
          .dk = rows_out(call.dk),
          .dv = rows_out(call.dv)};
}

common::backward::KeySums BackwardStage::sums_of(void* workspace) const {
  return {.data = sums_.in(workspace), .tiles = shape_.keys.all_tiles};
}

common::backward::Shares BackwardStage::shares_of(void* workspace) const {
  return {.steps = steps_.in(workspace),
          .sizes = step_sizes_.in(workspace),
          .part_dims = mma::backward::part_dims(shape_.config)};
}

}  // namespace msa::cuda
