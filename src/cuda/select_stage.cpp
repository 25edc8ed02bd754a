// SPDX-License-Identifier: MIT
#include "cuda/select_stage.h"

#include <limits>

#include "core/fields.h"
#include "cuda/batch.h"
#include "cuda/box.h"
#include "cuda/page_rule.h"
#include "cuda/tensor_map.h"

namespace msa::cuda {
namespace {

sm90::select::Queries queries_of(const Tensor& index_q) {
  return {.rows = make_rows<const void>(index_q),
          .storage = storage_of(index_q.dtype),
          .dim = static_cast<int>(index_q.shape[2])};
}

CUtensorMap index_map(const Problem& problem, const Tensor& index_k, int keys, const char* name) {
  return make_key_map(index_k, box_tokens(keys, problem.bounds.page_size), name);
}

bool is_fast(const Problem& p) {
  return p.op != Op::BlockScores && p.selection.precision == Precision::Fast;
}

sm90::select::SelectShape shape_of(const Problem& p) {
  return {.total_q = p.bounds.total_q,
          .max_seqlen_q = p.bounds.max_seqlen_q,
          .max_seqlen_k = p.bounds.max_seqlen_k,
          .batch = p.bounds.batch,
          .index_heads = static_cast<int>(p.index.heads),
          .index_heads_k = static_cast<int>(p.index.heads_k),
          .index_dim = static_cast<int>(p.index.dim),
          .block_size = static_cast<int>(p.selection.block_size),
          .causal = p.causal,
          .scratch = p.op != Op::BlockScores};
}

common::topk::TopkParams selection_of(const Problem& problem, const Tensor& ids,
                                      const Tensor& chosen) {
  common::topk::TopkParams params{.ids = make_slots<int>(ids), .chosen = make_slots<float>(chosen)};
  params.k = static_cast<int>(problem.selection.topk);
  params.block_size = static_cast<int>(problem.selection.block_size);
  params.local_blocks = static_cast<int>(problem.selection.local_blocks);
  params.init_blocks = static_cast<int>(problem.selection.init_blocks);
  params.causal = problem.causal;
  return params;
}

sm90::select::Front front_of(const common::prologue::Params& front) {
  return {.batch = front.batch,
          .tiles = common::prologue::view_of(front, front.tiles[1]),
          .num_tiles = front.tiles[1].most,
          .next_items = reinterpret_cast<unsigned*>(front.counters[1].data)};
}

}  // namespace

std::string SelectStage::rejects(const Problem& p) {
  if (p.op != Op::BlockScores && p.selection.topk > common::topk::kMaxTopk) {
    return "topk is at most " + std::to_string(common::topk::kMaxTopk) + " here, not " +
           std::to_string(p.selection.topk);
  }
  if (p.bounds.total_q > std::numeric_limits<int>::max() - 128)
    return "at most 2^31 - 129 query rows";
  if (p.bounds.max_seqlen_k >= 1 << 30) return "requests hold fewer than 2^30 keys";
  if (p.bounds.batch >= 1 << 23) return "fewer than 2^23 requests";
  if (p.op == Op::SelectTopk) {
    return p.index.heads <= kMaxGridYZ
               ? ""
               : "at most 65535 index heads, not " + std::to_string(p.index.heads);
  }
  if (is_fast(p) && p.bounds.page_size == 0)
    return "precision is exact here where index keys are ragged rows";
  if (p.index.filter && p.index.dim != 128)
    return "index keys with a filter have an index_dim of 128 here, not " +
           std::to_string(p.index.dim);
  if (core::index_k_format(p) != p.index.q)
    return "the kernels take index keys stored as index queries are, not " +
           to_string(core::index_k_format(p));
  if (p.index.heads_k > kMaxGridYZ)
    return "at most 65535 index-key heads, not " + std::to_string(p.index.heads_k);
  if (p.index.q.storage != DType::BF16 && p.index.q.storage != DType::F16) {
    return std::string("the kernels take index tensors of bf16 and f16, not ") +
           to_string(p.index.q.storage);
  }
  if (p.index.dim != 64 && p.index.dim != 128)
    return "index_dim is 64 or 128 here, not " + std::to_string(p.index.dim);
  if (p.selection.block_size != 64 && p.selection.block_size != 128) {
    return "block_size is 64 or 128 here, not " + std::to_string(p.selection.block_size);
  }
  const std::int64_t heads = p.index.heads / p.index.heads_k;
  if (heads > sm90::select::kTileRows)
    return "at most 192 index heads share a key head, not " + std::to_string(heads);
  return page_rejects(p.bounds.page_size, sm90::select::kTileKeys);
}

SelectStage::SelectStage(const Problem& p, const GpuInfo& gpu, Layout& layout)
    : from_scores_(p.op == Op::SelectTopk) {
  const std::int64_t blocks = blocks_of(p);
  if (from_scores_) {
    topk_tokens_ = common::topk::tokens_per_tile(static_cast<int>(p.index.heads));
    split_rows_ = common::topk::splits_rows(p.bounds.total_q * p.index.heads, blocks);
    tiles_ = layout.take<common::prologue::TileRecord>(
        common::prologue::max_tiles(p.bounds.total_q, p.bounds.batch, topk_tokens_));
    return;
  }
  const Tuning tuning = tuning_for(gpu);
  sm90::select::SelectShape shape = shape_of(p);
  shape.fast = is_fast(p);
  shape.filtered =
      p.index.filter && !shape.fast && sm90::select::filter_pays(shape, p.bounds.page_size, tuning);
  plan_ = sm90::select::plan_select(shape, tuning);
  tiles_ = layout.take<common::prologue::TileRecord>(plan_.num_tiles);
  next_items_ = layout.take<int>(sm90::select::num_chunks(plan_, plan_.num_tiles) *
                                 sm90::select::item_counters(plan_));
  scratch_ = layout.take<float>(sm90::select::scratch_words(plan_));
  if (!plan_.filtered) return;
  const std::int64_t lists = sm90::select::chunk_lists(plan_);
  list_parts_ = layout.take<int>(lists * plan_.list_parts);
  list_blocks_ = layout.take<int>(lists * plan_.columns);
  list_sizes_ = layout.take<int2>(lists);
}

void SelectStage::ask(common::prologue::Params& front, void* workspace) const {
  // Of the call, not of the plan, which may be made for far longer prompts.
  const int tokens = from_scores_ ? topk_tokens_ : plan_.tokens_per_tile;
  const std::int64_t most =
      common::prologue::max_tiles(front.batch.total_q, front.batch.batch, tokens);
  front.tiles[1] = {
      .records = tiles_.in(workspace), .most = static_cast<int>(most), .tokens = tokens};
  if (from_scores_) return;
  front.counters[1] = {.data = next_items_.in(workspace),
                       .count = static_cast<int>(sm90::select::num_chunks(plan_, most) *
                                                 sm90::select::item_counters(plan_))};
}

void SelectStage::run_scores(const Problem& problem, const core::Call& call,
                             const common::prologue::Params& front, cudaStream_t stream) const {
  sm90::select::launch_block_scores(
      plan_, front_of(front), queries_of(call.index_q),
      index_map(problem, call.index_k, sm90::select::kTileKeys, "index_k"),
      {make_slots<float>(call.scores), call.scores.shape[2]}, stream);
}

void SelectStage::run_selection(const Problem& problem, const core::Call& call, const Tensor& ids,
                                const Tensor& chosen, const common::prologue::Params& front,
                                void* workspace, cudaStream_t stream) const {
  common::topk::TopkParams params = selection_of(problem, ids, chosen);
  if (plan_.filtered) {
    return sm90::select::launch_filtered_blocks(
        plan_, front_of(front), queries_of(call.index_q),
        index_map(problem, call.index_k, sm90::select::kPartKeys, "index_k"),
        filter_of(problem, call, workspace), params, scratch_.in(workspace), stream);
  }
  if (plan_.fast) {
    return sm90::select::launch_fast_blocks(
        plan_, front_of(front), queries_of(call.index_q),
        index_map(problem, call.index_k8, sm90::select::kTileKeys, "index_k8"),
        make_filter_bounds<const float>(problem, call.index_k8_bounds), params,
        scratch_.in(workspace), stream);
  }
  if (!from_scores_) {
    params.candidates = make_rows<int>(call.candidates);
    return sm90::select::launch_select_blocks(
        plan_, front_of(front), queries_of(call.index_q),
        index_map(problem, call.index_k, sm90::select::kTileKeys, "index_k"), params,
        scratch_.in(workspace), stream);
  }
  params.tiles = common::prologue::view_of(front, front.tiles[1]);
  params.num_tiles = front.tiles[1].most;
  params.heads = static_cast<int>(problem.index.heads);
  params.scores = make_slots<const float>(call.scores_in);
  params.columns = call.scores_in.shape[2];
  common::topk::launch_select_topk(params, split_rows_, stream);
}

sm90::select::Filter SelectStage::filter_of(const Problem& problem, const core::Call& call,
                                            void* workspace) const {
  return {.code_map = index_map(problem, call.index_k8, sm90::select::kTileKeys, "index_k8"),
          .bounds = make_filter_bounds<const float>(problem, call.index_k8_bounds),
          .lists = {.parts = list_parts_.in(workspace),
                    .blocks = list_blocks_.in(workspace),
                    .sizes = list_sizes_.in(workspace),
                    .stride_parts = plan_.list_parts,
                    .stride_blocks = plan_.columns},
          .candidates = make_rows<int>(call.candidates)};
}

std::string SelectStage::decisions() const {
  if (from_scores_) return std::string("topk_warps_per_row ") + (split_rows_ ? "8" : "1") + "\n";
  const char* way = plan_.filtered ? "select_filter\n" : plan_.fast ? "select_fast\n" : "";
  return std::string(way) + "select_chunk " + std::to_string(plan_.chunk_tiles) + " tiles of " +
         std::to_string(plan_.tokens_per_tile) + " tokens\nselect_spans " +
         std::to_string(plan_.spans) + "\n";
}

}  // namespace msa::cuda
