// SPDX-License-Identifier: MIT
#include "cuda/backward_stage.h"

#include <algorithm>
#include <limits>

#include "core/geometry.h"
#include "cuda/attend_stage.h"
#include "cuda/batch.h"
#include "cuda/common/invert/launch.h"
#include "cuda/common/prologue/launch.h"
#include "cuda/invert_stage.h"
#include "cuda/mma/backward/launch.h"

namespace msa::cuda {
namespace {

using core::ceil_div;

bool walks_lists(const Problem& p) { return p.op == Op::SparseAttentionBackward; }

// Rows of work items: few enough that all CTAs have some, enough that what an item costs beside its
// steps does not count.
constexpr std::int64_t kLeastRows = 2048;
constexpr std::int64_t kMostRows = 16384;
constexpr std::int64_t kItemsPerCta = 4;
constexpr std::int64_t kInvariantRows = 16384;  // with batch_invariant, whatever the batch

std::int64_t group_of(const Problem& p) { return p.attention.heads_q / p.attention.heads_kv; }

/// Bytes of a tile's dk and dv in f32.
std::int64_t sum_bytes(const mma::backward::Config& config) {
  return std::int64_t{2} * config.keys * config.head_dim * 4;
}

common::invert::HeadRows head_rows(int* data, std::int64_t stride) { return {data, stride, 1}; }

}  // namespace

BackwardStage::Shape::Shape(const Problem& p, const GpuInfo& gpu)
    : listed(walks_lists(p)),
      config(mma::backward::config_for(
          storage_of(p.attention.q.storage), static_cast<int>(p.attention.head_dim),
          listed ? static_cast<int>(p.selection.block_size) : 0, gpu.shared_memory)),
      block(listed ? p.selection.block_size : config.keys),
      tiles(ceil_div(p.bounds.max_seqlen_k, block) * (block / config.keys)),
      all_tiles(tiles * p.bounds.batch),
      places(listed ? p.selection.topk * (block / config.keys) : std::max<std::int64_t>(1, tiles)),
      ctas(std::max(1, gpu.multiprocessors) *
           mma::backward::ctas_per_sm(config, gpu.shared_memory)) {
  const Tuning tuning = tuning_for(gpu);
  const std::int64_t row_bytes =
      config.head_dim * 2 + config.head_dim / mma::backward::part_dims(config) * 4;
  slot_bytes = group_of(p) * row_bytes;
  const std::int64_t rows = std::max<std::int64_t>(1, p.bounds.total_q);
  const std::int64_t fitting =
      std::max<std::int64_t>(1, tuning.share_bytes / (slot_bytes * places * p.attention.heads_kv));
  chunk_rows = ceil_div(rows, ceil_div(rows, fitting));  // equally large
  max_parts = tuning.part_bytes / sum_bytes(config);
  const std::int64_t sums = all_tiles * p.attention.heads_kv * sum_bytes(config);
  order = chunk_rows >= rows ? Order::Once
          // Where chunks end depends on the rows of other requests.
          : sums <= tuning.sum_bytes && !p.options.batch_invariant ? Order::Summed
                                                                   : Order::Twice;
}

std::string BackwardStage::rejects(const Problem& p, const GpuInfo& gpu) {
  if (p.attention.q.storage != DType::BF16) {
    return std::string("gradients are for bf16 here, not ") + to_string(p.attention.q.storage) +
           (p.attention.q.storage == DType::F16 ? ": those of scores may be beyond f16" : "");
  }
  if (p.outputs.dtype != p.attention.q.storage)
    return std::string("out and dout are stored as q is here, not as ") +
           to_string(p.outputs.dtype);
  if (p.attention.head_dim != 64 && p.attention.head_dim != 128)
    return "head_dim is 64 or 128 here, not " + std::to_string(p.attention.head_dim);
  if (p.attention.value_dim != p.attention.head_dim)
    return "value_dim equals head_dim here, not " + std::to_string(p.attention.value_dim);
  if (walks_lists(p) && p.selection.block_size != 64 && p.selection.block_size != 128)
    return "block_size is 64 or 128 here, not " + std::to_string(p.selection.block_size);
  if (std::string why = InvertStage::rejects(p); !why.empty()) return why;
  constexpr std::int64_t kMost = std::numeric_limits<int>::max();
  if (p.bounds.total_q * std::max(walks_lists(p) ? p.selection.topk : 1, group_of(p)) > kMost - 128)
    return "at most 2^31 - 129 entries of the block lists of a KV head, and rows of its query "
           "heads";
  const Shape shape(p, gpu);
  if (shape.all_tiles * p.attention.heads_kv > kMost / 2)
    return "at most 2^30 tiles of keys: those of the longest request, times requests and KV heads";
  if (p.options.batch_invariant &&
      item_tokens(p, shape, p.bounds.total_q) > ceil_div(kInvariantRows, group_of(p)))
    return "too many rows for batch_invariant: sums of long lists would need too much memory";
  return "";
}

std::int64_t BackwardStage::item_tokens(const Problem& p, const Shape& shape, std::int64_t rows) {
  const std::int64_t pairs = rows * shape.places * p.attention.heads_kv;
  const std::int64_t least =
      p.options.batch_invariant
          ? kInvariantRows
          : std::clamp(pairs * group_of(p) / (kItemsPerCta * shape.ctas), kLeastRows, kMostRows);
  return std::max(ceil_div(least, group_of(p)), ceil_div(2 * pairs, shape.max_parts));
}

std::int64_t BackwardStage::max_items(const Problem& p, const Shape& shape, std::int64_t rows) {
  const std::int64_t pairs = rows * shape.places * p.attention.heads_kv;
  return std::min(pairs, shape.all_tiles * p.attention.heads_kv) +
         pairs / item_tokens(p, shape, rows);
}

BackwardStage::BackwardStage(const Problem& p, const GpuInfo& gpu, Layout& layout)
    : shape_(p, gpu) {
  const std::int64_t heads_kv = p.attention.heads_kv;
  const std::int64_t rows = p.bounds.total_q;
  requests_ = layout.take<RequestRecord>(p.bounds.batch);
  first_blocks_ = layout.take<std::int64_t>(p.bounds.batch + 1);
  delta_ = layout.take<float>(rows * p.attention.heads_q);
  counters_ = layout.take<common::backward::Counters>(1);
  items_ = layout.take<common::backward::WorkItem>(
      std::max(max_items(p, shape_, rows), max_items(p, shape_, shape_.chunk_rows)));
  splits_ = layout.take<common::backward::SplitTile>(shape_.max_parts / 2);
  if (shape_.listed) {
    q_indices_ = layout.take<int>(heads_kv * rows * p.selection.topk);
    q_slots_ = layout.take<int>(heads_kv * rows * p.selection.topk);
    row_ptr_ = layout.take<int>(heads_kv * (p.bounds.batch * blocks_of(p) + 1));
    invert_tokens_ = common::invert::tokens_per_tile(rows, heads_kv, blocks_of(p));
    const std::int64_t tiles = common::prologue::max_tiles(rows, p.bounds.batch, invert_tokens_);
    tiles_ = layout.take<common::prologue::TileRecord>(tiles);
    num_tiles_ = layout.take<int>(1);
    first_tiles_ = layout.take<int>(p.bounds.batch);
    // Done with before there are sums.
    Layout counts(layout.bytes());
    counts_ = counts.take<int>(tiles * heads_kv * blocks_of(p));
    plan_sums(p, layout);
    layout.extend(counts.bytes());
  } else {
    plan_sums(p, layout);
  }
}

void BackwardStage::plan_sums(const Problem& p, Layout& layout) {
  const std::int64_t floats = sum_bytes(shape_.config) / 4;
  const std::int64_t slots = shape_.chunk_rows * p.attention.heads_kv * shape_.places;
  const std::int64_t shares = slots * group_of(p) * shape_.config.head_dim;
  // dk and dv of all rows are done with before dq begins.
  Layout parts = layout;
  parts_ = parts.take<float>(shape_.max_parts * floats);
  if (shape_.order != Order::Twice) layout = parts;
  steps_ = layout.take<std::uint16_t>(shares);
  step_sizes_ = layout.take<float>(shares / mma::backward::part_dims(shape_.config));
  if (shape_.order == Order::Summed)
    sums_ = layout.take<float>(shape_.all_tiles * p.attention.heads_kv * floats);
  layout.extend(parts.bytes());
}

std::string BackwardStage::decisions() const {
  const char* const orders[] = {"once", "chunk by chunk, keys summed", "keys, then rows by chunks"};
  return "backward_tile " + std::to_string(shape_.config.keys) + " keys x " +
         std::to_string(shape_.config.rows) + " rows\nbackward_chunk " +
         std::to_string(shape_.chunk_rows) + " tokens\nbackward_order " +
         orders[static_cast<int>(shape_.order)] + "\n";
}

void BackwardStage::run(const Problem& problem, const core::Call& call, void* workspace,
                        cudaStream_t stream) const {
  BatchParams batch = make_batch(problem, call, call.k, kStatus.in(workspace));
  common::prologue::Params front{.batch = batch,
                                 .requests = requests_.in(workspace),
                                 .first_blocks = first_blocks_.in(workspace),
                                 .keys_of_block = static_cast<int>(shape_.block)};
  if (shape_.listed) {
    front.tiles[0] = {.records = tiles_.in(workspace),
                      .most = static_cast<int>(
                          common::prologue::max_tiles(batch.total_q, batch.batch, invert_tokens_)),
                      .tokens = invert_tokens_,
                      .count = num_tiles_.in(workspace)};
    front.first_tiles = first_tiles_.in(workspace);
  }
  common::prologue::launch(front, stream);
  const common::backward::Pairs pairs = pairs_of(problem, call, front, workspace);
  prepare(problem, call, pairs, front, workspace, stream);
  const bool queries = static_cast<bool>(call.dq);
  const bool keys = call.dk || call.dv;
  if (keys && (!queries || shape_.order == Order::Twice))
    run_rows(problem, call, pairs, {.begin = 0, .end = batch.total_q, .keys = true}, workspace,
             stream);
  const bool beside = keys && shape_.order != Order::Twice;
  for (std::int64_t begin = 0; queries && begin < batch.total_q; begin += shape_.chunk_rows) {
    run_rows(problem, call, pairs,
             {.begin = begin,
              .end = std::min(begin + shape_.chunk_rows, batch.total_q),
              .queries = true,
              .keys = beside,
              .summed = beside && shape_.order == Order::Summed},
             workspace, stream);
  }
  if (queries && beside && shape_.order == Order::Summed) {
    common::backward::KeyParams params = key_params(problem, call, pairs, workspace);
    params.sums = sums_of(workspace);
    common::backward::launch_finish(storage_of(problem.attention.q.storage), params,
                                    shape_.all_tiles, stream);
  }
}

common::backward::KeySums BackwardStage::sums_of(void* workspace) const {
  return {.data = sums_.in(workspace), .tiles = shape_.all_tiles};
}

common::backward::Pairs BackwardStage::pairs_of(const Problem& problem, const core::Call& call,
                                                const common::prologue::Params& front,
                                                void* workspace) const {
  common::backward::Pairs pairs{.batch = front.batch,
                                .requests = front.requests,
                                .first_blocks = front.first_blocks,
                                .heads_kv = static_cast<int>(problem.attention.heads_kv),
                                .group = static_cast<int>(group_of(problem)),
                                .keys = shape_.config.keys,
                                .places = static_cast<int>(shape_.places),
                                .listed = shape_.listed ? 1 : 0};
  pairs.batch.block_size = static_cast<int>(shape_.block);
  if (!shape_.listed) return pairs;
  const std::int64_t entries = front.batch.total_q * problem.selection.topk;
  pairs.lists = make_lists(call.block_ids_in);
  pairs.row_ptr = head_rows(row_ptr_.in(workspace), num_lists(problem));
  pairs.q_indices = head_rows(q_indices_.in(workspace), entries);
  pairs.q_slots = head_rows(q_slots_.in(workspace), entries);
  return pairs;
}

std::int64_t BackwardStage::num_lists(const Problem& problem) {
  return problem.bounds.batch * blocks_of(problem) + 1;
}

void BackwardStage::prepare(const Problem& problem, const core::Call& call,
                            const common::backward::Pairs& pairs,
                            const common::prologue::Params& front, void* workspace,
                            cudaStream_t stream) const {
  const Storage storage = storage_of(problem.attention.q.storage);
  if (shape_.listed) {
    common::invert::launch({.front = front,
                            .heads = pairs.heads_kv,
                            .max_blocks = static_cast<int>(blocks_of(problem)),
                            .lists = pairs.lists,
                            .counts = counts_.in(workspace),
                            .row_ptr = pairs.row_ptr,
                            .num_entries = num_lists(problem),
                            .q_indices = pairs.q_indices,
                            .q_slots = pairs.q_slots,
                            .length = front.batch.total_q * problem.selection.topk},
                           stream);
  }
  common::backward::launch_delta(storage,
                                 {.rows = front.batch.total_q,
                                  .heads = static_cast<int>(problem.attention.heads_q),
                                  .head_dim = static_cast<int>(problem.attention.head_dim),
                                  .out = make_rows<const void>(call.out_in),
                                  .dout = make_rows<const void>(call.dout),
                                  .dlse = make_rows<const float>(call.dlse),
                                  .delta = delta_.in(workspace)},
                                 stream);
  if (!problem.gradients.accumulate) {
    common::backward::launch_clear(storage, key_params(problem, call, pairs, workspace), stream);
  }
  if (shape_.order == Order::Summed) {
    const std::int64_t bytes =
        shape_.all_tiles * problem.attention.heads_kv * sum_bytes(shape_.config);
    MSA_CUDA_CHECK(
        cudaMemsetAsync(sums_.in(workspace), 0, static_cast<std::size_t>(bytes), stream));
  }
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
          .work = {.counters = counters_.in(workspace),
                   .items = items_.in(workspace),
                   .splits = splits_.in(workspace)},
          .parts = parts_.in(workspace),
          .head_dim = static_cast<int>(problem.attention.head_dim),
          .rows = call.k.shape[0],
          .dk = rows_out(call.dk),
          .dv = rows_out(call.dv)};
}

void BackwardStage::run_rows(const Problem& problem, const core::Call& call,
                             const common::backward::Pairs& all, const Rows& rows, void* workspace,
                             cudaStream_t stream) const {
  const Storage storage = storage_of(problem.attention.q.storage);
  common::backward::KeyParams sums = key_params(problem, call, all, workspace);
  sums.pairs.row_begin = rows.begin;
  sums.pairs.row_end = rows.end;
  sums.work.max_items = static_cast<int>(max_items(problem, shape_, rows.end - rows.begin));
  sums.work.max_parts = static_cast<int>(shape_.max_parts);
  sums.work.item_tokens = static_cast<int>(std::min<std::int64_t>(
      item_tokens(problem, shape_, rows.end - rows.begin), std::numeric_limits<int>::max()));
  if (rows.summed) sums.sums = sums_of(workspace);
  if (!rows.keys) {
    sums.work.splits = nullptr;
    sums.dk = sums.dv = {};
  }
  common::backward::launch_items(sums.pairs, sums.work, shape_.all_tiles, stream);
  mma::backward::Params params{.pairs = sums.pairs,
                               .work = sums.work,
                               .q = make_rows<const void>(call.q),
                               .dout = make_rows<const void>(call.dout),
                               .k = make_key_rows<const std::uint16_t>(call.k),
                               .v = make_key_rows<const std::uint16_t>(call.v),
                               .lse = make_rows<const float>(call.lse_in),
                               .delta = delta_.in(workspace),
                               .scale = scale_of(problem),
                               .scale_log2 = scale_log2_of(problem),
                               .parts = parts_.in(workspace),
                               .sums = sums.sums,
                               .dk = sums.dk,
                               .dv = sums.dv};
  if (rows.queries) params.shares = shares_of(workspace);
  mma::backward::launch(shape_.config, params, shape_.ctas, stream);
  if (rows.keys) common::backward::launch_join(storage, sums, shape_.ctas, stream);
  if (!rows.queries) return;
  common::backward::launch_queries(storage,
                                   {.pairs = sums.pairs,
                                    .shares = params.shares,
                                    .head_dim = sums.head_dim,
                                    .lse = params.lse,
                                    .scale = params.scale,
                                    .dq = make_rows<void>(call.dq),
                                    .f32 = problem.gradients.dtype == DType::F32 ? 1 : 0},
                                   stream);
}

common::backward::Shares BackwardStage::shares_of(void* workspace) const {
  return {.steps = steps_.in(workspace),
          .sizes = step_sizes_.in(workspace),
          .part_dims = mma::backward::part_dims(shape_.config)};
}

}  // namespace msa::cuda
