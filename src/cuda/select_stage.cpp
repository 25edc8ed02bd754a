// SPDX-License-Identifier: MIT
#include "cuda/select_stage.h"

#include <limits>

#include "core/fields.h"
#include "cuda/batch.h"
#include "cuda/box.h"
#include "cuda/common/decode/launch.h"
#include "cuda/mma/select/launch.h"
#include "cuda/page_rule.h"
#include "cuda/sm90/select/launch.h"
#include "cuda/tensor_map.h"

namespace msa::cuda {
namespace {

using common::select::Front;
using common::select::kPartKeys;
using common::select::kTileKeys;
using common::select::ScoresOut;
using common::select::SelectPlan;
using common::topk::TopkParams;

common::select::Queries queries_of(const Tensor& index_q) {
  return {.rows = make_rows<const void>(index_q),
          .storage = storage_of(index_q.dtype),
          .dim = static_cast<int>(index_q.shape[2])};
}

CUtensorMap index_map(const Problem& problem, const Tensor& index_k, int keys, const char* name) {
  return make_key_map(index_k, box_tokens(keys, problem.bounds.page_size), name);
}

/// Whether index keys become items before scoring reads them.
bool unpacks(const Problem& p) {
  const Format keys = core::index_k_format(p);
  const bool codes = keys.storage == DType::E4M3 || keys.storage == DType::E2M1;
  return codes && p.index.q.storage != DType::E4M3;
}

bool is_fast(const Problem& p) {
  return p.op != Op::BlockScores && p.selection.precision == Precision::Fast;
}

common::select::SelectShape shape_of(const Problem& p) {
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

TopkParams selection_of(const Problem& problem, const Tensor& ids, const Tensor& chosen) {
  TopkParams params{.ids = make_slots<int>(ids), .chosen = make_slots<float>(chosen)};
  params.k = static_cast<int>(problem.selection.topk);
  params.block_size = static_cast<int>(problem.selection.block_size);
  params.local_blocks = static_cast<int>(problem.selection.local_blocks);
  params.init_blocks = static_cast<int>(problem.selection.init_blocks);
  params.causal = problem.causal;
  return params;
}

Front front_of(const common::prologue::Params& front) {
  return {.batch = front.batch,
          .tiles = common::prologue::view_of(front, front.tiles[1]),
          .num_tiles = front.tiles[1].most,
          .next_items = reinterpret_cast<unsigned*>(front.counters[1].data)};
}

ScoresOut scores_out(const core::Call& call) {
  return {make_slots<float>(call.scores), call.scores.shape[2]};
}

}  // namespace

struct Sm90Scores {
  static constexpr bool kFilters = true;

  static Tuning tuning(const GpuInfo& gpu) { return tuning_for(gpu); }

  static void scores(const SelectPlan& plan, const Front& front, const Problem& problem,
                     const core::Call& call, cudaStream_t stream) {
    sm90::select::launch_block_scores(plan, front, queries_of(call.index_q),
                                      index_map(problem, call.index_k, kTileKeys, "index_k"),
                                      scores_out(call), stream);
  }

  static void selection(const SelectPlan& plan, const Front& front, const Problem& problem,
                        const core::Call& call, TopkParams& params, const FilterLists& lists,
                        void* workspace, float* scratch, cudaStream_t stream) {
    const common::select::Queries queries = queries_of(call.index_q);
    if (plan.filtered) {
      return sm90::select::launch_filtered_blocks(
          plan, front, queries, index_map(problem, call.index_k, kPartKeys, "index_k"),
          filter_of(plan, problem, call, lists, workspace), params, scratch, stream);
    }
    if (plan.fast) {
      return sm90::select::launch_fast_blocks(
          plan, front, queries, index_map(problem, call.index_k8, kTileKeys, "index_k8"),
          make_filter_bounds<const float>(problem, call.index_k8_bounds), params, scratch, stream);
    }
    params.candidates = make_rows<int>(call.candidates);
    sm90::select::launch_select_blocks(plan, front, queries,
                                       index_map(problem, call.index_k, kTileKeys, "index_k"),
                                       params, scratch, stream);
  }

 private:
  static sm90::select::Filter filter_of(const SelectPlan& plan, const Problem& problem,
                                        const core::Call& call, const FilterLists& lists,
                                        void* workspace) {
    return {.code_map = index_map(problem, call.index_k8, kTileKeys, "index_k8"),
            .bounds = make_filter_bounds<const float>(problem, call.index_k8_bounds),
            .lists = {.parts = lists.parts.in(workspace),
                      .blocks = lists.blocks.in(workspace),
                      .sizes = lists.sizes.in(workspace),
                      .stride_parts = plan.list_parts,
                      .stride_blocks = plan.columns},
            .candidates = make_rows<int>(call.candidates)};
  }
};

/// A filter is taken and not read.
struct MmaScores {
  static constexpr bool kFilters = false;

  /// As many CTAs as run at once stand for multiprocessors.
  static Tuning tuning(const GpuInfo& gpu) {
    Tuning tuning = tuning_for(gpu);
    tuning.multiprocessors *= mma::select::kCtasPerSm;
    tuning.select_overhead = kOverhead;
    return tuning;
  }

  static void scores(const SelectPlan& plan, const Front& front, const Problem&,
                     const core::Call& call, cudaStream_t stream) {
    const ScoresOut out = scores_out(call);
    common::decode::launch_fill(out.scores, call.scores.shape[0],
                                static_cast<int>(call.scores.shape[1]), out.columns, stream);
    mma::select::launch_block_scores(plan, front, queries_of(call.index_q),
                                     make_key_rows<const std::uint16_t>(call.index_k), out, stream);
  }

  static void selection(const SelectPlan& plan, const Front& front, const Problem&,
                        const core::Call& call, TopkParams& params, const FilterLists&, void*,
                        float* scratch, cudaStream_t stream) {
    params.candidates = make_rows<int>(call.candidates);
    mma::select::launch_select_blocks(plan, front, queries_of(call.index_q),
                                      make_key_rows<const std::uint16_t>(call.index_k), params,
                                      scratch, stream);
  }

 private:
  // Key tiles take two CTAs of an SM three times as long as one of sm90, an item's queries and
  // first rows as long. Not measured.
  static constexpr std::int64_t kOverhead = 2;
};

template <class Scores>
std::string SelectStageOf<Scores>::rejects(const Problem& p) {
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
  if (is_fast(p) && !Scores::kFilters) return "precision is exact here, not fast";
  if (is_fast(p) && p.bounds.page_size == 0)
    return "precision is exact here where index keys are ragged rows";
  if (p.index.filter && p.index.dim != 128)
    return "index keys with a filter have an index_dim of 128 here, not " +
           std::to_string(p.index.dim);
  if (unpacks(p)) {
    if (std::string why = UnpackIndexStage::rejects(p); !why.empty()) return why;
  } else if (core::index_k_format(p) != p.index.q) {
    return "the kernels take index keys stored as index queries are, not " +
           to_string(core::index_k_format(p));
  }
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
  if (heads > common::select::kTileRows)
    return "at most 192 index heads share a key head, not " + std::to_string(heads);
  return page_rejects(p.bounds.page_size, common::select::kTileKeys);
}

template <class Scores>
SelectStageOf<Scores>::SelectStageOf(const Problem& p, const GpuInfo& gpu, Layout& layout)
    : from_scores_(p.op == Op::SelectTopk) {
  const std::int64_t blocks = blocks_of(p);
  if (from_scores_) {
    topk_tokens_ = common::topk::tokens_per_tile(static_cast<int>(p.index.heads));
    split_rows_ = common::topk::splits_rows(p.bounds.total_q * p.index.heads, blocks);
    tiles_ = layout.take<common::prologue::TileRecord>(
        common::prologue::max_tiles(p.bounds.total_q, p.bounds.batch, topk_tokens_));
    return;
  }
  if (unpacks(p)) {
    unpack_.emplace(p, layout);
    unpacked_ = UnpackIndexStage::unpacked(p);
  }
  const Tuning tuning = Scores::tuning(gpu);
  common::select::SelectShape shape = shape_of(p);
  shape.fast = is_fast(p);
  shape.filtered = Scores::kFilters && p.index.filter && !shape.fast &&
                   common::select::filter_pays(shape, p.bounds.page_size, tuning);
  plan_ = common::select::plan_select(shape, tuning);
  tiles_ = layout.take<common::prologue::TileRecord>(plan_.num_tiles);
  next_items_ = layout.take<int>(common::select::num_chunks(plan_, plan_.num_tiles) *
                                 common::select::item_counters(plan_));
  scratch_ = layout.take<float>(common::select::scratch_words(plan_));
  if (!plan_.filtered) return;
  const std::int64_t lists = common::select::chunk_lists(plan_);
  lists_.parts = layout.take<int>(lists * plan_.list_parts);
  lists_.blocks = layout.take<int>(lists * plan_.columns);
  lists_.sizes = layout.take<int2>(lists);
}

template <class Scores>
void SelectStageOf<Scores>::ask(common::prologue::Params& front, void* workspace) const {
  // Of the call, not of the plan, which may be made for far longer prompts.
  const int tokens = from_scores_ ? topk_tokens_ : plan_.tokens_per_tile;
  const std::int64_t most =
      common::prologue::max_tiles(front.batch.total_q, front.batch.batch, tokens);
  front.tiles[1] = {
      .records = tiles_.in(workspace), .most = static_cast<int>(most), .tokens = tokens};
  if (from_scores_) return;
  front.counters[1] = {.data = next_items_.in(workspace),
                       .count = static_cast<int>(common::select::num_chunks(plan_, most) *
                                                 common::select::item_counters(plan_))};
}

template <class Scores>
void SelectStageOf<Scores>::run_scores(const Problem& problem, const core::Call& call,
                                       const common::prologue::Params& front, void* workspace,
                                       cudaStream_t stream) const {
  if (!unpack_) return Scores::scores(plan_, front_of(front), problem, call, stream);
  core::Call items = call;
  common::prologue::Params own = front;
  unpack_->run(problem, items, own, workspace, stream);
  Scores::scores(plan_, front_of(own), *unpacked_, items, stream);
}

template <class Scores>
void SelectStageOf<Scores>::run_selection(const Problem& problem, const core::Call& call,
                                          const Tensor& ids, const Tensor& chosen,
                                          const common::prologue::Params& front, void* workspace,
                                          cudaStream_t stream) const {
  if (!unpack_) return select(problem, call, ids, chosen, front, workspace, stream);
  core::Call items = call;
  common::prologue::Params own = front;
  unpack_->run(problem, items, own, workspace, stream);
  select(*unpacked_, items, ids, chosen, own, workspace, stream);
}

template <class Scores>
void SelectStageOf<Scores>::select(const Problem& problem, const core::Call& call,
                                   const Tensor& ids, const Tensor& chosen,
                                   const common::prologue::Params& front, void* workspace,
                                   cudaStream_t stream) const {
  TopkParams params = selection_of(problem, ids, chosen);
  if (!from_scores_) {
    return Scores::selection(plan_, front_of(front), problem, call, params, lists_, workspace,
                             scratch_.in(workspace), stream);
  }
  params.tiles = common::prologue::view_of(front, front.tiles[1]);
  params.num_tiles = front.tiles[1].most;
  params.heads = static_cast<int>(problem.index.heads);
  params.scores = make_slots<const float>(call.scores_in);
  params.columns = call.scores_in.shape[2];
  common::topk::launch_select_topk(params, split_rows_, stream);
}

template <class Scores>
std::string SelectStageOf<Scores>::decisions() const {
  if (from_scores_) return std::string("topk_warps_per_row ") + (split_rows_ ? "8" : "1") + "\n";
  const char* way = plan_.filtered ? "select_filter\n" : plan_.fast ? "select_fast\n" : "";
  return std::string(unpack_ ? "unpack_index\n" : "") + way + "select_chunk " +
         std::to_string(plan_.chunk_tiles) + " tiles of " + std::to_string(plan_.tokens_per_tile) +
         " tokens\nselect_spans " + std::to_string(plan_.spans) + "\n";
}

template class SelectStageOf<Sm90Scores>;
template class SelectStageOf<MmaScores>;

}  // namespace msa::cuda
