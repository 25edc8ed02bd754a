// SPDX-License-Identifier: MIT
#include "cuda/decode_stage.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/fields.h"
#include "core/geometry.h"
#include "core/op_traits.h"
#include "cuda/attend_stage.h"
#include "cuda/batch.h"
#include "cuda/box.h"
#include "cuda/common/prologue/launch.h"
#include "cuda/mma/decode/attend/launch.h"
#include "cuda/mma/decode/score/launch.h"
#include "cuda/page_rule.h"
#include "cuda/sm90/decode/attend/launch.h"
#include "cuda/sm90/decode/score/launch.h"
#include "cuda/tensor_map.h"
#include "cuda/tuning.h"
#include "msa/error.h"

namespace msa::cuda {
namespace {

namespace decode = common::decode;

bool scores_keys(Op op) { return core::op_traits(op).indexes; }
bool attends(Op op) { return core::op_traits(op).attends; }
bool selects(Op op) { return core::op_traits(op).selects; }

/// Tokens x index heads of an index-key head.
std::int64_t score_columns(const Problem& p) {
  return p.bounds.max_seqlen_q * (p.index.heads / p.index.heads_k);
}

std::string index_rejects(const Problem& p) {
  if (p.index.q.storage != DType::BF16 && p.index.q.storage != DType::F16)
    return std::string("the kernels take bf16 and f16 indexes, not ") +
           to_string(p.index.q.storage);
  if (p.selection.precision == Precision::Fast)
    return "precision is exact here: the codes of a filter never decide";
  if (p.index.filter && p.index.dim != 128)
    return "index keys with a filter have an index_dim of 128 here, not " +
           std::to_string(p.index.dim);
  const Format keys = core::index_k_format(p);
  const bool codes = keys.storage == DType::E4M3 || keys.storage == DType::E2M1;
  if (keys != p.index.q && !codes)
    return "the kernels take index keys stored as index queries are, as e4m3 or as e2m1, not " +
           to_string(keys);
  if (codes && p.index.dim != 128)
    return std::string("index_dim is 128 here where index keys are ") + to_string(keys.storage) +
           ", not " + std::to_string(p.index.dim);
  if (p.index.dim != 64 && p.index.dim != 128)
    return "index_dim is 64 or 128 here, not " + std::to_string(p.index.dim);
  const std::int64_t columns = score_columns(p);
  if (columns > decode::kMaxColumns)
    return "decode scores at most 32 tokens x heads of an index-key head, not " +
           std::to_string(columns);
  if (p.index.heads_k > kMaxGridYZ) return "at most 65535 index-key heads";
  return page_rejects(p.bounds.page_size, decode::kScoreStep);
}

decode::AttendConfig attend_config(const Problem& p) {
  return {.storage = storage_of(p.attention.q.storage),
          .block = static_cast<int>(p.selection.block_size),
          .dim = static_cast<int>(p.attention.head_dim),
          .kv = storage_of(core::kv_format(p).storage)};
}

decode::RanksParams ranks_params(const core::AttendCall& among) {
  const auto rank = static_cast<std::size_t>(among.peers.rank);
  const auto ranks = static_cast<int>(among.peers.ranks);
  decode::RanksParams params{
      .rank = static_cast<int>(rank),
      .ranks = ranks,
      .timeout_ns = static_cast<std::uint64_t>(among.peers.timeout_ms) * 1'000'000,
      .counts = static_cast<std::uint32_t*>(among.peers.pads[rank]) + 2 * ranks,
      .forced = static_cast<const int*>(among.forced.data),
      .num_forced = among.forced ? static_cast<int>(among.forced.shape[1]) : 0,
      .last_keys = static_cast<const int*>(among.last_keys.data)};
  const auto* const here = static_cast<const char*>(among.states[rank]);
  for (std::size_t n = 0; n < among.states.size(); ++n) {
    params.inboxes[n] = static_cast<common::peers::Candidate*>(among.peers.boxes[n]);
    params.states[n] = static_cast<const char*>(among.states[n]) - here;
  }
  return params;
}

/// Parts of a block that a filter bounds.
std::int64_t parts_of(const Problem& p) { return p.selection.block_size / decode::kPartKeys; }

/// Whether reading codes and then the keys of some blocks is faster than reading all keys.
bool filter_pays(const Problem& p, const Tuning& tuning) {
  const std::int64_t row_bytes = p.index.dim * 2;
  const std::int64_t spared =
      p.bounds.batch * p.bounds.max_seqlen_k * p.index.heads_k * (row_bytes - p.index.dim);
  const std::int64_t rows = std::min(p.bounds.total_q, p.bounds.batch * p.bounds.max_seqlen_q);
  const std::int64_t read =
      rows * p.index.heads * tuning.filter_parts * decode::kPartKeys * row_bytes;
  return spared > read + tuning.filter_bytes;
}

}  // namespace

struct Sm90Decode {
  using ScoreParams = sm90::decode::ScoreParams;
  using AttendParams = sm90::decode::AttendParams;
  static constexpr bool kClusters = true;
  static constexpr bool kRanks = true;                                     // attention among GPUs
  static constexpr std::int64_t kSelectRoom = decode::kMostSelectScratch;  // in attention

  /// SMs as plans count them: one CTA of scoring fits, and two of attention.
  static int multiprocessors(const GpuInfo& gpu) { return gpu.multiprocessors; }
  static int score_ctas_per_sm(const GpuInfo&, int) { return 1; }
  static bool may_score_alone(const decode::ScoreConfig& config) {
    return sm90::decode::may_stand_alone(config);
  }
  /// CTAs of attention, of so many, that stand beside those of scoring: one an SM, if any.
  static int waiting_ctas(const GpuInfo& gpu, std::int64_t, const decode::ScoreConfig& scoring) {
    return sm90::decode::score_teams(scoring).teams == 1 ? gpu.multiprocessors : 0;
  }

  static CUtensorMap steps(const Problem& problem, const Tensor& keys, const char* name) {
    return make_row_map(keys, box_tokens(decode::kScoreStep, problem.bounds.page_size), name);
  }
  static CUtensorMap blocks(const Problem& problem, const Tensor& keys, const char* name) {
    const auto block = static_cast<int>(problem.selection.block_size);
    return make_key_map(keys, box_tokens(block, problem.bounds.page_size), name);
  }
  static void launch(const decode::ScoreConfig& config, const ScoreParams& params,
                     cudaStream_t stream) {
    sm90::decode::launch_score(config, params, stream);
  }
  static void launch(const decode::AttendConfig& config, const AttendParams& params,
                     cudaStream_t stream) {
    sm90::decode::launch_attend(config, params, stream);
  }
  static void launch(const decode::AttendConfig& config, const AttendParams& params,
                     const decode::RanksParams& among, cudaStream_t stream) {
    sm90::decode::launch_attend_ranks(config, {params, among}, stream);
  }
};

struct MmaDecode {
  using ScoreParams = mma::decode::ScoreParams;
  using AttendParams = mma::decode::AttendParams;
  static constexpr bool kClusters = false;
  static constexpr bool kRanks = false;
  static constexpr std::int64_t kSelectRoom = mma::decode::kTileRingBytes;

  /// Half of them where one CTA of attention fits an SM.
  static int multiprocessors(const GpuInfo& gpu) {
    return fits_two(gpu) ? gpu.multiprocessors : std::max(1, gpu.multiprocessors / 2);
  }
  static int score_ctas_per_sm(const GpuInfo& gpu, int tiles) {
    return fits_two(gpu) ? mma::decode::score_ctas_per_sm(tiles) : 1;
  }
  /// All of few: each has the registers of a CTA of scoring, without which memory is as busy. None
  /// where launches follow each other.
  static int waiting_ctas(const GpuInfo& gpu, std::int64_t ctas, const decode::ScoreConfig&) {
    const bool overlap = gpu.major >= 9 && fits_two(gpu);
    return overlap && ctas <= gpu.multiprocessors / 2 ? static_cast<int>(ctas) : 0;
  }
  static bool may_score_alone(const decode::ScoreConfig&) { return false; }

  static mma::decode::Keys steps(const Problem&, const Tensor& keys, const char*) {
    return make_byte_rows(keys);
  }
  static mma::decode::Keys blocks(const Problem&, const Tensor& keys, const char*) {
    return make_byte_rows(keys);
  }
  static void launch(const decode::ScoreConfig& config, const ScoreParams& params,
                     cudaStream_t stream) {
    mma::decode::launch_score(config, params, stream);
  }
  static void launch(const decode::AttendConfig& config, const AttendParams& params,
                     cudaStream_t stream) {
    mma::decode::launch_attend(config, params, stream);
  }

 private:
  /// CTAs with rings of 64 KB.
  static bool fits_two(const GpuInfo& gpu) { return gpu.shared_memory >= 160 << 10; }
};

template <class Kernels>
std::string DecodeStageOf<Kernels>::rejects(const Problem& p) {
  if (!scores_keys(p.op) && !attends(p.op))
    return std::string("decode has no kernel for ") + to_string(p.op);
  if (p.outputs.block_max || !p.outputs.out) return "decode writes no block maxima";
  if (p.bounds.max_seqlen_q > decode::kMaxTokens)
    return "decode takes at most 8 query tokens a request, not " +
           std::to_string(p.bounds.max_seqlen_q);
  if (p.bounds.batch * std::max<std::int64_t>(p.bounds.max_seqlen_q, 1) > kMaxGridYZ)
    return "decode takes at most 65535 requests x tokens";
  if (p.selection.block_size != 64 && p.selection.block_size != 128)
    return "block_size is 64 or 128 here, not " + std::to_string(p.selection.block_size);
  if (p.op != Op::DenseAttention && p.op != Op::BlockScores && p.selection.topk > decode::kMaxTopk)
    return "topk is at most 64 here, not " + std::to_string(p.selection.topk);
  if (scores_keys(p.op)) {
    if (std::string why = index_rejects(p); !why.empty()) return why;
  }
  if (selects(p.op) && decode::select_candidates(static_cast<int>(p.selection.topk), blocks_of(p),
                                                 1) > decode::kMostCandidates)
    return "decode selects from fewer blocks than " + std::to_string(blocks_of(p));
  if (!attends(p.op)) return "";
  const std::int64_t group = p.attention.heads_q / p.attention.heads_kv;
  if (p.attention.heads_kv * decode::head_tiles(static_cast<int>(group)) > kMaxGridYZ)
    return "decode takes at most 65535 KV heads x tiles of 16 query heads";
  return AttendStage::rejects(p, p.op != Op::DenseAttention);
}

template <class Kernels>
DecodeStageOf<Kernels>::DecodeStageOf(const Problem& p, const GpuInfo& gpu, Layout& layout)
    : token_slots_(static_cast<int>(std::max<std::int64_t>(p.bounds.max_seqlen_q, 1))),
      max_blocks_(static_cast<int>(blocks_of(p))) {
  const Tuning tuning = tuning_for(gpu);
  const bool filters = scores_keys(p.op) && p.index.filter && filter_pays(p, tuning);
  plan_selection(p);
  // Attention waits beside a scoring CTA, but not beside that and a rescoring one.
  const bool waits = attends(p.op) && selects_inside_ && !filters;
  if (scores_keys(p.op)) {
    scoring_ = {.storage = storage_of(p.index.q.storage),
                .tiles = decode::score_tiles(score_columns(p)),
                .dim = static_cast<int>(p.index.dim),
                .keys = filters ? Storage::I8 : storage_of(core::index_k_format(p).storage)};
    const std::int64_t steps =
        p.bounds.batch * core::ceil_div(p.bounds.max_seqlen_k, decode::kScoreStep);
    const bool pays = !waits || steps >= tuning.lone_steps * gpu.multiprocessors;
    scoring_.alone = pays && Kernels::may_score_alone(scoring_);
  }
  if (attends(p.op)) {
    const std::int64_t ctas = plan_splits(p, gpu);
    if (waits) rehearsals_ = Kernels::waiting_ctas(gpu, ctas, scoring_);
  }
  if (scores_keys(p.op)) {
    const int per_sm = Kernels::score_ctas_per_sm(gpu, scoring_.tiles);
    score_ctas_ =
        decode::score_ctas(p.bounds.batch, p.bounds.max_seqlen_k, static_cast<int>(p.index.heads_k),
                           gpu.multiprocessors * per_sm - (per_sm > 1 ? rehearsals_ : 0));
    num_claims_ = static_cast<int>(p.index.heads_k);
    score_stride_ = (max_blocks_ + 3) / 4 * 4;  // rows of whole 16-byte loads
    const std::int64_t orders = p.bounds.total_q * p.index.heads * score_stride_;
    if (p.op != Op::BlockScores) scores_ = layout.take<float>(orders);
    if (filters) {
      rescore_ctas_ = decode::rescore_ctas(p.bounds.batch * p.bounds.max_seqlen_q * p.index.heads,
                                           max_blocks_, gpu.multiprocessors);
      lower_ = layout.take<std::uint32_t>(orders);
      upper_ = layout.take<std::uint32_t>(orders * parts_of(p));
    }
  }
  if (attends(p.op)) {
    if (p.op == Op::MsaAttention && !selects_inside_)
      ids_ = layout.take<int>(p.bounds.total_q * p.attention.heads_kv * p.selection.topk);
    const std::int64_t slots = decode::partial_slots(
        p.bounds.total_q, static_cast<int>(p.attention.heads_kv),
        static_cast<int>(p.attention.heads_q / p.attention.heads_kv), splits_, Kernels::kClusters);
    num_arrivals_ = static_cast<int>(slots / splits_);
    partial_out_ = layout.take<float>(slots * 16 * p.attention.head_dim);
    partial_state_ = layout.take<float2>(slots * 16);
  }
  counters_ = layout.take<int>(num_claims_ + num_arrivals_);
}

template <class Kernels>
void DecodeStageOf<Kernels>::plan_selection(const Problem& p) {
  const auto topk = static_cast<int>(p.selection.topk);
  lanes_ = decode::select_lanes(topk, max_blocks_);
  if (p.op != Op::MsaAttention) return;
  const int lanes = decode::select_lanes(topk, max_blocks_, Kernels::kSelectRoom);
  selects_inside_ = decode::select_scratch_bytes(topk, max_blocks_, lanes) <= Kernels::kSelectRoom;
  if (selects_inside_) lanes_ = lanes;
}

template <class Kernels>
std::int64_t DecodeStageOf<Kernels>::plan_splits(const Problem& p, const GpuInfo& gpu) {
  const int heads_kv = static_cast<int>(p.attention.heads_kv);
  const int group = static_cast<int>(p.attention.heads_q / p.attention.heads_kv);
  const std::int64_t rows = std::max<std::int64_t>(1, p.bounds.batch * p.bounds.max_seqlen_q);
  const std::int64_t entries = p.op == Op::DenseAttention
                                   ? max_blocks_
                                   : std::min<std::int64_t>(max_blocks_, p.selection.topk);
  splits_ = decode::attend_splits(rows, heads_kv, group, entries, Kernels::multiprocessors(gpu));
  return rows * heads_kv * decode::head_tiles(group) * splits_;
}

template <class Kernels>
std::string DecodeStageOf<Kernels>::decisions() const {
  std::string text;
  if (score_ctas_ > 0) text += "decode_score " + std::to_string(score_ctas_) + " CTAs\n";
  if (rescore_ctas_ > 0) text += "decode_filter " + std::to_string(rescore_ctas_) + " CTAs a row\n";
  if (rehearsals_ > 0) text += "decode_rehearsals " + std::to_string(rehearsals_) + " CTAs\n";
  return text + "decode_splits " + std::to_string(splits_) + "\n";
}

template <class Kernels>
void DecodeStageOf<Kernels>::ask(common::prologue::Params& front, void* workspace) const {
  front.counters[1] = {.data = counters_.in(workspace), .count = num_claims_ + num_arrivals_};
}

template <class Kernels>
void DecodeStageOf<Kernels>::run(const Problem& problem, const core::Call& call,
                                 const common::prologue::Params& front, void* workspace,
                                 cudaStream_t stream, const core::AttendCall* among) const {
  // All parameters first: a tensor that the copy engine refuses must leave the outputs as they are.
  std::optional<typename Kernels::ScoreParams> score;
  std::optional<decode::RescoreParams> rescore;
  std::optional<typename Kernels::AttendParams> attend;
  if (scores_keys(problem.op)) {
    score = {score_params(problem, call, front, workspace),
             rescore_ctas_ > 0 ? Kernels::steps(problem, call.index_k8, "index_k8")
                               : Kernels::steps(problem, call.index_k, "index_k")};
  }
  if (rescore_ctas_ > 0) rescore = rescore_params(problem, call, *score, workspace);
  if (attends(problem.op)) {
    attend = {attend_params(problem, call, front, workspace), Kernels::blocks(problem, call.k, "k"),
              Kernels::blocks(problem, call.v, "v")};
  }
  common::prologue::launch(front, stream);
  if (score) {
    if (problem.op == Op::BlockScores) {
      decode::launch_fill(score->scores, call.scores.shape[0],
                          static_cast<int>(call.scores.shape[1]), call.scores.shape[2], stream);
    }
    Kernels::launch(scoring_, *score, stream);
  }
  if (rescore) {
    decode::launch_rescore({.storage = storage_of(problem.index.q.storage),
                            .dim = static_cast<int>(problem.index.dim)},
                           *rescore, stream);
  }
  if (problem.op == Op::SelectBlocks || (selects(problem.op) && !selects_inside_))
    decode::launch_select(select_params(problem, call, front, workspace), stream);
  if (!attend) return;
  if constexpr (Kernels::kRanks) {
    if (among != nullptr)
      return Kernels::launch(attend_config(problem), *attend, ranks_params(*among), stream);
  }
  Kernels::launch(attend_config(problem), *attend, stream);
}

template <class Kernels>
bool DecodeStageOf<Kernels>::attends_among_ranks(const Problem& problem) const {
  return Kernels::kRanks && problem.op == Op::MsaAttention && rescore_ctas_ == 0 &&
         std::ranges::find(decode::kRanksInstances, attend_config(problem)) !=
             decode::kRanksInstances.end();
}

template <class Kernels>
Slots<float> DecodeStageOf<Kernels>::score_rows(const Problem& problem, const core::Call& call,
                                                void* workspace) const {
  if (problem.op == Op::BlockScores) {
    return make_slots<float>(call.scores);
  }
  return {.data = scores_.in(workspace),
          .stride_t = problem.index.heads * score_stride_,
          .stride_h = score_stride_};
}

template <class Kernels>
Tensor DecodeStageOf<Kernels>::ids_of(const Problem& problem, const core::Call& call,
                                      void* workspace) const {
  if (call.block_ids || problem.op != Op::MsaAttention || selects_inside_) return call.block_ids;
  return make_tensor(ids_.in(workspace), DType::I32,
                     {call.q.shape[0], problem.attention.heads_kv, problem.selection.topk},
                     problem.device);
}

template <class Kernels>
decode::ScoreParams DecodeStageOf<Kernels>::score_params(const Problem& problem,
                                                         const core::Call& call,
                                                         const common::prologue::Params& front,
                                                         void* workspace) const {
  const bool filters = rescore_ctas_ > 0;
  return {.batch = front.batch,
          .records = front.requests,
          .index_q = make_rows<const void>(call.index_q),
          .heads = static_cast<int>(problem.index.heads),
          .heads_k = static_cast<int>(problem.index.heads_k),
          .ctas = score_ctas_,
          .claims = reinterpret_cast<unsigned*>(counters_.in(workspace)),
          .scores = score_rows(problem, call, workspace),
          .orders = problem.op != Op::BlockScores,
          .k_scales = make_scales(problem, core::index_k_format(problem), call.index_k_scale),
          .k_groups = make_group_scales(core::index_k_format(problem), call.index_k_scale,
                                        call.index_k_global_scale),
          .bounds = filters ? make_filter_bounds<const float>(problem, call.index_k8_bounds)
                            : FilterBounds<const float>{},
          .lower = order_rows(problem, lower_, 1, workspace),
          .upper = order_rows(problem, upper_, parts_of(problem), workspace)};
}

template <class Kernels>
Rows<std::uint32_t> DecodeStageOf<Kernels>::order_rows(const Problem& problem,
                                                       const Piece<std::uint32_t>& piece,
                                                       std::int64_t parts, void* workspace) const {
  if (rescore_ctas_ == 0) return {};
  const std::int64_t stride = score_stride_ * parts;
  return {piece.in(workspace), problem.index.heads * stride, stride};
}

template <class Kernels>
decode::RescoreParams DecodeStageOf<Kernels>::rescore_params(const Problem& problem,
                                                             const core::Call& call,
                                                             const decode::ScoreParams& score,
                                                             void* workspace) const {
  const auto read = [](const Rows<std::uint32_t>& rows) {
    return Rows<const std::uint32_t>{rows.data, rows.stride_t, rows.stride_h};
  };
  return {.batch = score.batch,
          .records = score.records,
          .index_q = score.index_q,
          .index_k = make_key_rows<const void>(call.index_k),
          .heads = score.heads,
          .heads_k = score.heads_k,
          .topk = static_cast<int>(problem.selection.topk),
          .token_slots = token_slots_,
          .ctas = rescore_ctas_,
          .lower = read(score.lower),
          .upper = read(score.upper),
          .orders = order_rows(problem, {scores_.offset}, 1, workspace),
          .candidates = make_rows<int>(call.candidates)};
}

template <class Kernels>
decode::SelectParams DecodeStageOf<Kernels>::select_params(const Problem& problem,
                                                           const core::Call& call,
                                                           const common::prologue::Params& front,
                                                           void* workspace) const {
  decode::SelectParams params{.batch = front.batch,
                              .records = front.requests,
                              .topk = static_cast<int>(problem.selection.topk),
                              .token_slots = token_slots_,
                              .max_blocks = max_blocks_,
                              .lanes = lanes_};
  if (scores_keys(problem.op)) {
    const Slots<float> rows = score_rows(problem, call, workspace);
    params.orders = {reinterpret_cast<const std::uint32_t*>(rows.data), rows.stride_t,
                     rows.stride_h};
    params.heads = static_cast<int>(problem.index.heads);
  }
  if (rescore_ctas_ == 0) params.candidates = make_rows<int>(call.candidates);
  params.ids = make_slots<int>(ids_of(problem, call, workspace));
  params.chosen = make_slots<float>(call.chosen_scores);
  return params;
}

template <class Kernels>
decode::AttendParams DecodeStageOf<Kernels>::attend_params(const Problem& problem,
                                                           const core::Call& call,
                                                           const common::prologue::Params& front,
                                                           void* workspace) const {
  const int group = static_cast<int>(problem.attention.heads_q / problem.attention.heads_kv);
  decode::AttendParams params{
      .select = select_params(problem, call, front, workspace),
      .q = make_rows<const void>(call.q),
      .to = make_rows_out(call.out, call.lse),
      .heads_kv = static_cast<int>(problem.attention.heads_kv),
      .group = group,
      .tiles = decode::head_tiles(group),
      .splits = splits_,
      .rehearsals = rehearsals_,
      .scale_log2 = scale_log2_of(problem),
      .partial_out = partial_out_.in(workspace),
      .partial_state = partial_state_.in(workspace),
      .arrivals = reinterpret_cast<unsigned*>(counters_.in(workspace) + num_claims_),
      .k_scales = make_scales(problem, core::kv_format(problem), call.k_scale),
      .v_scales = make_scales(problem, core::kv_format(problem), call.v_scale),
      .k_groups = make_group_scales(core::kv_format(problem), call.k_scale, call.k_global_scale),
      .v_groups = make_group_scales(core::kv_format(problem), call.v_scale, call.v_global_scale)};
  if (problem.op == Op::SparseAttention) {
    params.blocks = decode::Blocks::Listed;
    params.lists = make_lists(call.block_ids_in);
  }
  if (problem.op == Op::MsaAttention && selects_inside_) params.blocks = decode::Blocks::Scored;
  if (problem.op == Op::MsaAttention && !selects_inside_) {
    params.blocks = decode::Blocks::Listed;
    params.lists = make_lists(ids_of(problem, call, workspace));
  }
  return params;
}

template class DecodeStageOf<Sm90Decode>;
template class DecodeStageOf<MmaDecode>;

}  // namespace msa::cuda
