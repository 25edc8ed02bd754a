// SPDX-License-Identifier: MIT
#include "cuda/path.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include "core/fields.h"
#include "cuda/attend_stage.h"
#include "cuda/backward_stage.h"
#include "cuda/batch.h"
#include "cuda/common/prologue/launch.h"
#include "cuda/decode_stage.h"
#include "cuda/index_loss_stage.h"
#include "cuda/invert_stage.h"
#include "cuda/merge_stage.h"
#include "cuda/select_stage.h"
#include "cuda/store_stage.h"
#include "cuda/tuning.h"
#include "cuda/unpack_stage.h"

namespace msa::cuda {
namespace {

using Front = common::prologue::Params;

void clear_status(void* workspace, cudaStream_t stream) {
  static_assert(kNoFault == ~StatusWord{0}, "all bits set: what the memset writes");
  MSA_CUDA_CHECK(cudaMemsetAsync(kStatus.in(workspace), 0xff, sizeof(StatusWord), stream));
}

/// A row's answer that is the same for every GPU.
template <std::string (*kRejects)(const Problem&)>
std::string on_any(const Problem& problem, const GpuInfo&) {
  return kRejects(problem);
}

/// What attention over unions of lists does not take of what others do.
std::string union_rejects(const Problem& problem) {
  // Weights times the scales of their values may be more than f16 can hold.
  const Format kv = core::kv_format(problem);
  if (has_column_scales(kv) && problem.attention.q.storage == DType::F16)
    return "requests of more than 8 query tokens in f16 take one scale for all or for each head, "
           "not " +
           to_string(kv);
  return "";
}

/// Where a selection goes: to the caller, or to `piece` where the caller does not want it.
Tensor ids_or_own(const Problem& problem, const core::Call& call, const Piece<int>& piece,
                  void* workspace) {
  if (call.block_ids) return call.block_ids;
  return make_tensor(piece.in(workspace), DType::I32,
                     {call.q.shape[0], problem.attention.heads_kv, problem.selection.topk},
                     problem.device);
}

/// The stages of an instruction set, of which paths are made.
struct Sm90Stages {
  using Attend = AttendStage;
  using Select = SelectStage;
  using Decode = DecodeStage;
};
struct MmaStages {
  using Attend = MmaAttendStage;
  using Select = MmaSelectStage;
  using Decode = MmaDecodeStage;
};

template <class Chosen>
std::unique_ptr<Path> plan_path(const Problem& problem, const GpuInfo& gpu, Layout& layout) {
  return std::make_unique<Chosen>(problem, gpu, layout);
}

// ---- requests of a few query tokens -----------------------------------------------------------

template <class Stages>
class DecodePath final : public Path {
 public:
  DecodePath(const Problem& problem, const GpuInfo& gpu, Layout& layout)
      : requests_(layout.take<RequestRecord>(problem.bounds.batch)), stage_(problem, gpu, layout) {}
  static bool takes(Op op) {
    return op == Op::DenseAttention || op == Op::SparseAttention || op == Op::MsaAttention ||
           op == Op::BlockScores || op == Op::SelectBlocks;
  }
  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const override {
    stage_.run(problem, call, front_of(problem, call, workspace), workspace, stream);
  }
  bool attend(const Problem& problem, const core::Call& call, const core::AttendCall& among,
              void* workspace, cudaStream_t stream) const override {
    if (!stage_.attends_among_ranks(problem)) return false;
    stage_.run(problem, call, front_of(problem, call, workspace), workspace, stream, &among);
    return true;
  }
  std::string decisions() const override { return stage_.decisions(); }

 private:
  Front front_of(const Problem& problem, const core::Call& call, void* workspace) const {
    const Tensor& keys = call.k ? call.k : call.index_k;
    Front front{.batch = make_batch(problem, call, keys, kStatus.in(workspace)),
                .requests = requests_.in(workspace)};
    stage_.ask(front, workspace);
    return front;
  }

  Piece<RequestRecord> requests_;
  typename Stages::Decode stage_;
};

/// Requests of a few tokens that together list few blocks, tile by tile: each block is read once
/// for all of them. Lists are given, or selected as decode does.
template <class Stages>
class SharedDecodePath final : public Path {
 public:
  SharedDecodePath(const Problem& problem, const GpuInfo& gpu, Layout& layout)
      : requests_(layout.take<RequestRecord>(problem.bounds.batch)),
        selection_(selection_of(problem)) {
    if (problem.op == Op::MsaAttention) {
      ids_ = layout.take<int>(problem.bounds.total_q * problem.attention.heads_kv *
                              problem.selection.topk);
    }
    attend_.emplace(problem, gpu, true, layout);
    // Scores are done with before attention begins.
    Layout scores(attend_->run_begin());
    if (problem.op == Op::MsaAttention) select_.emplace(selection_, gpu, scores);
    layout.extend(scores.bytes());
  }

  static bool takes(Op op) { return op == Op::SparseAttention || op == Op::MsaAttention; }

  static std::string rejects(const Problem& problem, const GpuInfo& gpu) {
    if (std::string why = Stages::Decode::rejects(problem); !why.empty()) return why;
    if (std::string why = union_rejects(problem); !why.empty()) return why;
    if (core::kv_format(problem).storage == DType::E2M1) return "four bits are read list by list";
    return unions_pay(problem, tuning_for(gpu)) ? "" : "lists are read one by one";
  }

  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const override {
    Front front{.batch = make_batch(problem, call, call.k, kStatus.in(workspace)),
                .requests = requests_.in(workspace)};
    attend_->ask(front, workspace);
    if (!select_) {
      common::prologue::launch(front, stream);
      return attend_->run(problem, call, call.block_ids_in, front, workspace, stream);
    }
    select_->ask(front, workspace);
    core::Call selection = call;
    selection.block_ids = ids_or_own(problem, call, ids_, workspace);
    select_->run(selection_, selection, front, workspace, stream);
    attend_->run(problem, call, selection.block_ids, front, workspace, stream);
  }

  std::string decisions() const override {
    return (select_ ? select_->decisions() : "") + attend_->decisions();
  }

 private:
  static Problem selection_of(const Problem& problem) {
    Problem selection = problem;
    selection.op = Op::SelectBlocks;
    return selection;
  }

  /// Bytes of keys and values that one block of a head holds.
  static std::int64_t block_bytes(const Problem& p) {
    return p.selection.block_size * (p.attention.head_dim + p.attention.value_dim) *
           bits_of(storage_of(core::kv_format(p).storage)) / 8;
  }

  /// Whether reading the blocks of a request's tokens once, from memory, takes less time than
  /// reading each token's by itself, from L2. Looks at bounds only.
  static bool unions_pay(const Problem& p, const Tuning& tuning) {
    const std::int64_t group = p.attention.heads_q / p.attention.heads_kv;
    const std::int64_t tokens = p.bounds.max_seqlen_q;
    const std::int64_t listed = std::min(blocks_of(p), p.selection.topk);
    const std::int64_t alone =
        listed * tokens * common::decode::head_tiles(static_cast<int>(group));
    // Of 8 neighbours: 20 to 24 where each lists 16.
    const std::int64_t together = std::min({blocks_of(p), listed * tokens, listed + listed / 2});
    const double bytes =
        static_cast<double>(p.bounds.batch * p.attention.heads_kv * block_bytes(p));
    return bytes *
               (static_cast<double>(alone) - tuning.memory_factor * static_cast<double>(together)) >
           static_cast<double>(tuning.union_bytes);
  }

  Piece<RequestRecord> requests_;
  const Problem selection_;
  std::optional<typename Stages::Attend> attend_{};
  std::optional<typename Stages::Decode> select_{};
  Piece<int> ids_{};
};

// ---- attention, whole MSA among it -------------------------------------------------------------

/// Block maxima of dense attention are block scores of q and k.
Problem maxima_problem(const Problem& dense) {
  Problem scores = dense;
  scores.op = Op::BlockScores;
  scores.index = {.q = dense.attention.q,
                  .k = dense.attention.kv,
                  .heads = dense.attention.heads_q,
                  .heads_k = dense.attention.heads_kv,
                  .dim = dense.attention.head_dim};
  return scores;
}
core::Call maxima_call(const core::Call& dense) {
  return {.index_q = dense.q, .index_k = dense.k, .batch = dense.batch, .scores = dense.block_max};
}

template <class Stages>
class AttentionPath final : public Path {
 public:
  AttentionPath(const Problem& problem, const GpuInfo& gpu, Layout& layout)
      : requests_(layout.take<RequestRecord>(problem.bounds.batch)),
        attended_(unpacks(problem) ? UnpackStage::unpacked(problem) : problem) {
    if (unpacks(problem)) unpack_.emplace(problem, layout);
    if (problem.op == Op::MsaAttention) {
      ids_ = layout.take<int>(problem.bounds.total_q * problem.attention.heads_kv *
                              problem.selection.topk);
    }
    if (writes_output(problem))
      attend_.emplace(attended_, gpu, problem.op != Op::DenseAttention, layout);
    // Scores are done with before attention begins.
    Layout scores(attend_ ? attend_->run_begin() : layout.bytes());
    if (problem.op == Op::MsaAttention) select_.emplace(problem, gpu, scores);
    if (problem.outputs.block_max) select_.emplace(maxima_problem(problem), gpu, scores);
    layout.extend(scores.bytes());
  }

  static bool takes(Op op) {
    return op == Op::DenseAttention || op == Op::SparseAttention || op == Op::MsaAttention;
  }

  static std::string rejects(const Problem& problem) {
    const Format kv = core::kv_format(problem);
    const bool codes = kv.storage == DType::E4M3 || kv.storage == DType::E2M1;
    if (codes && problem.outputs.block_max)
      return "block maxima take keys stored as queries are, not " + to_string(kv);
    std::string why = union_rejects(problem);
    if (!why.empty()) return why;
    if (problem.op == Op::MsaAttention) why = Stages::Select::rejects(problem);
    if (problem.op == Op::DenseAttention && problem.outputs.block_max)
      why = Stages::Select::rejects(maxima_problem(problem));
    if (!why.empty() || !writes_output(problem)) return why;
    const bool lists = problem.op != Op::DenseAttention;
    if (!unpacks(problem)) return Stages::Attend::rejects(problem, lists);
    why = UnpackStage::rejects(problem);
    return why.empty() ? Stages::Attend::rejects(UnpackStage::unpacked(problem), lists) : why;
  }

  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const override {
    Front front{.batch = make_batch(problem, call, call.k, kStatus.in(workspace)),
                .requests = requests_.in(workspace)};
    if (attend_) attend_->ask(front, workspace);
    if (select_) select_->ask(front, workspace);
    common::prologue::launch(front, stream);
    if (problem.op == Op::MsaAttention) return run_msa(problem, call, front, workspace, stream);
    if (problem.outputs.block_max)
      select_->run_scores(maxima_problem(problem), maxima_call(call), front, workspace, stream);
    if (attend_) attend(problem, call, call.block_ids_in, front, workspace, stream);
  }

  std::string decisions() const override {
    return (select_ ? select_->decisions() : "") + (attend_ ? attend_->decisions() : "");
  }
  std::span<const int> suspects(std::int64_t rows, void* workspace) const override {
    return attend_ ? attend_->suspects(rows, workspace) : std::span<const int>{};
  }

 private:
  /// Whether keys and values become items before attention reads them.
  static bool unpacks(const Problem& problem) {
    return core::kv_format(problem).storage == DType::E2M1;
  }

  void attend(const Problem& problem, const core::Call& call, const Tensor& ids, const Front& front,
              void* workspace, cudaStream_t stream) const {
    if (!unpack_) return attend_->run(problem, call, ids, front, workspace, stream);
    core::Call items = call;
    Front own = front;
    unpack_->run(problem, items, own, workspace, stream);
    attend_->run(attended_, items, ids, own, workspace, stream);
  }

  static bool writes_output(const Problem& problem) {
    return problem.op != Op::DenseAttention || problem.outputs.out;
  }

  void run_msa(const Problem& problem, const core::Call& call, const Front& front, void* workspace,
               cudaStream_t stream) const {
    const Tensor ids = ids_or_own(problem, call, ids_, workspace);
    select_->run_selection(problem, call, ids, {}, front, workspace, stream);
    attend(problem, call, ids, front, workspace, stream);
  }

  Piece<RequestRecord> requests_;
  const Problem attended_;
  std::optional<UnpackStage> unpack_{};
  std::optional<typename Stages::Select> select_{};
  std::optional<typename Stages::Attend> attend_{};
  Piece<int> ids_{};  // msa_attention: where the caller does not want them
};

// ---- selection alone ---------------------------------------------------------------------------

template <class Stages>
class SelectPath final : public Path {
 public:
  SelectPath(const Problem& problem, const GpuInfo& gpu, Layout& layout)
      : requests_(layout.take<RequestRecord>(problem.bounds.batch)), stage_(problem, gpu, layout) {}
  static bool takes(Op op) {
    return op == Op::BlockScores || op == Op::SelectTopk || op == Op::SelectBlocks;
  }
  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const override {
    Front front{.batch = make_batch(problem, call, call.index_k, kStatus.in(workspace)),
                .requests = requests_.in(workspace)};
    stage_.ask(front, workspace);
    common::prologue::launch(front, stream);
    if (problem.op == Op::BlockScores)
      return stage_.run_scores(problem, call, front, workspace, stream);
    stage_.run_selection(problem, call, call.block_ids, call.chosen_scores, front, workspace,
                         stream);
  }
  std::string decisions() const override { return stage_.decisions(); }

 private:
  Piece<RequestRecord> requests_;
  typename Stages::Select stage_;
};

// ---- joining shards, inverting selections ------------------------------------------------------

class MergePath final : public Path {
 public:
  MergePath(const Problem&, const GpuInfo&, Layout&) {}
  static bool takes(Op op) { return op == Op::MergeStates || op == Op::MergeSelections; }
  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const override {
    clear_status(workspace, stream);
    stage_.run(problem, call, workspace, stream);
  }
  std::string decisions() const override { return ""; }

 private:
  MergeStage stage_{};
};

class InvertPath final : public Path {
 public:
  InvertPath(const Problem& problem, const GpuInfo&, Layout& layout) : stage_(problem, layout) {}
  static bool takes(Op op) { return op == Op::InvertSelection; }
  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const override {
    stage_.run(problem, call, workspace, stream);
  }
  std::string decisions() const override { return stage_.decisions(); }

 private:
  InvertStage stage_;
};

// ---- gradients ---------------------------------------------------------------------------------

template <class Stage, Op... kOps>
class GradientPath final : public Path {
 public:
  GradientPath(const Problem& problem, const GpuInfo& gpu, Layout& layout)
      : stage_(problem, gpu, layout) {}
  static bool takes(Op op) { return ((op == kOps) || ...); }
  static std::string rejects(const Problem& problem, const GpuInfo& gpu) {
    return Stage::rejects(problem, gpu);
  }
  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const override {
    stage_.run(problem, call, workspace, stream);
  }
  std::string decisions() const override { return stage_.decisions(); }

 private:
  Stage stage_;
};

using BackwardPath =
    GradientPath<BackwardStage, Op::SparseAttentionBackward, Op::DenseAttentionBackward>;
using Sm90BackwardPath =
    GradientPath<Sm90BackwardStage, Op::SparseAttentionBackward, Op::DenseAttentionBackward>;
using IndexLossPath = GradientPath<IndexLossStage, Op::IndexLoss>;
using Sm90IndexLossPath = GradientPath<Sm90IndexLossStage, Op::IndexLoss>;

// ---- storing new keys --------------------------------------------------------------------------

class StorePath final : public Path {
 public:
  StorePath(const Problem& problem, const GpuInfo&, Layout& layout) : stage_(problem, layout) {}
  static bool takes(Op op) { return op == Op::QuantizeKv || op == Op::QuantizeIndex; }
  /// Everything legal is served.
  static std::string rejects(const Problem&) { return ""; }
  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const override {
    if (!StoreStage::has_requests(problem)) clear_status(workspace, stream);
    stage_.run(problem, call, workspace, stream);
  }
  std::string decisions() const override { return ""; }

 private:
  StoreStage stage_;
};

// ---- the table ---------------------------------------------------------------------------------

template <class Chosen>
constexpr PathRow row_of(const char* name, const Isa* isa,
                         std::string (*rejects)(const Problem&, const GpuInfo&)) {
  return {name, isa, Chosen::takes, rejects, plan_path<Chosen>};
}

// Decode before the others: it takes what it can of their operations. Merge, invert and store have
// kernels in common/ alone; gradients have them in mma/, and on Hopper some of their own
// (docs/kernels/backward.md).
constexpr std::array kTable = {
    row_of<SharedDecodePath<Sm90Stages>>("decode_shared", &kSm90,
                                         SharedDecodePath<Sm90Stages>::rejects),
    row_of<DecodePath<Sm90Stages>>("decode", &kSm90, on_any<DecodeStage::rejects>),
    row_of<AttentionPath<Sm90Stages>>("attention", &kSm90,
                                      on_any<AttentionPath<Sm90Stages>::rejects>),
    row_of<SelectPath<Sm90Stages>>("select", &kSm90, on_any<SelectStage::rejects>),
    row_of<MergePath>("merge", &kSm90, on_any<MergeStage::rejects>),
    row_of<InvertPath>("invert", &kSm90, on_any<InvertStage::rejects>),
    row_of<StorePath>("store", &kSm90, on_any<StorePath::rejects>),
    row_of<Sm90BackwardPath>("backward", &kSm90, Sm90BackwardPath::rejects),
    row_of<Sm90IndexLossPath>("index_loss", &kSm90, Sm90IndexLossPath::rejects),

    row_of<DecodePath<MmaStages>>("decode", &kMma, on_any<MmaDecodeStage::rejects>),
    row_of<AttentionPath<MmaStages>>("attention", &kMma, on_any<AttentionPath<MmaStages>::rejects>),
    row_of<SelectPath<MmaStages>>("select", &kMma, on_any<MmaSelectStage::rejects>),
    row_of<MergePath>("merge", &kMma, on_any<MergeStage::rejects>),
    row_of<InvertPath>("invert", &kMma, on_any<InvertStage::rejects>),
    row_of<StorePath>("store", &kMma, on_any<StorePath::rejects>),
    row_of<BackwardPath>("backward", &kMma, BackwardPath::rejects),
    row_of<IndexLossPath>("index_loss", &kMma, IndexLossPath::rejects),
};

}  // namespace

std::span<const PathRow> path_table() { return kTable; }

const PathRow* find_path(const Problem& problem, const GpuInfo& gpu, std::string& why) {
  why = isa_name_rejects(problem.options.isa);
  if (!why.empty()) return nullptr;
  why = std::string("no kernel for ") + to_string(problem.op) + " on " + gpu.name;
  const Isa* best = nullptr;  // whose reason `why` holds, of those that run there
  for (const PathRow& row : kTable) {
    if (!row.takes(problem.op)) continue;
    if (!problem.options.isa.empty() && problem.options.isa != row.isa->name) continue;
    std::string reason = isa_rejects(*row.isa, gpu);
    const bool runs = reason.empty();
    if (runs) reason = row.rejects(problem, gpu);
    if (reason.empty()) {
      why.clear();
      return &row;
    }
    if (best == nullptr || best == row.isa) why = reason;
    if (runs && best == nullptr) best = row.isa;
  }
  return nullptr;
}

}  // namespace msa::cuda
