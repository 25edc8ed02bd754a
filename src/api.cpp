// SPDX-License-Identifier: MIT
// Every entry point: gather the tensors of a call, validate, plan, run. What an operation needs is
// written in core/validate.cpp; how it is computed, in the backends.
#include <cstdlib>
#include <memory>
#include <new>

#include "core/backend.h"
#include "core/derive.h"
#include "core/environment.h"
#include "core/validate.h"
#include "msa/msa.h"

namespace msa {

struct PlanAccess {
  static Plan make(std::shared_ptr<const core::Planned> planned) {
    return Plan(std::move(planned));
  }
  static const core::Planned& planned(const Plan& plan) { return *plan.planned_; }
};

namespace {

core::Call gather(const DenseAttentionArgs& a) {
  return {.q = a.q,
          .k = a.k,
          .v = a.v,
          .batch = a.batch,
          .out = a.out,
          .lse = a.lse,
          .block_max = a.block_max};
}
core::Call gather(const BlockScoresArgs& a) {
  return {.index_q = a.index_q, .index_k = a.index_k, .batch = a.batch, .scores = a.scores};
}
core::Call gather(const SelectTopkArgs& a) {
  return {.scores_in = a.scores,
          .batch = a.batch,
          .block_ids = a.block_ids,
          .chosen_scores = a.chosen_scores};
}
core::Call gather(const SelectBlocksArgs& a) {
  return {.index_q = a.index_q,
          .index_k = a.index_k,
          .batch = a.batch,
          .block_ids = a.block_ids,
          .chosen_scores = a.chosen_scores};
}
core::Call gather(const SparseAttentionArgs& a) {
  return {.q = a.q,
          .k = a.k,
          .v = a.v,
          .block_ids_in = a.block_ids,
          .batch = a.batch,
          .out = a.out,
          .lse = a.lse};
}
core::Call gather(const MsaAttentionArgs& a) {
  return {.q = a.q,
          .k = a.k,
          .v = a.v,
          .index_q = a.index_q,
          .index_k = a.index_k,
          .batch = a.batch,
          .out = a.out,
          .lse = a.lse,
          .block_ids = a.block_ids};
}
core::Call gather(const MergeStatesArgs& a) {
  return {.part_outs = a.outs, .part_lses = a.lses, .out = a.out, .lse = a.lse};
}
core::Call gather(const MergeSelectionsArgs& a) {
  return {.part_ids = a.block_ids_parts,
          .part_scores = a.chosen_scores_parts,
          .block_ids = a.block_ids,
          .chosen_scores = a.chosen_scores};
}
core::Call gather(const InvertSelectionArgs& a) {
  return {.block_ids_in = a.block_ids,
          .batch = a.batch,
          .row_ptr = a.row_ptr,
          .q_indices = a.q_indices,
          .q_slots = a.q_slots};
}

// clang-format off
template <class Args>
constexpr Op op_of();
template <> constexpr Op op_of<DenseAttentionArgs>() { return Op::DenseAttention; }
template <> constexpr Op op_of<BlockScoresArgs>() { return Op::BlockScores; }
template <> constexpr Op op_of<SelectTopkArgs>() { return Op::SelectTopk; }
template <> constexpr Op op_of<SelectBlocksArgs>() { return Op::SelectBlocks; }
template <> constexpr Op op_of<SparseAttentionArgs>() { return Op::SparseAttention; }
template <> constexpr Op op_of<MsaAttentionArgs>() { return Op::MsaAttention; }
template <> constexpr Op op_of<MergeStatesArgs>() { return Op::MergeStates; }
template <> constexpr Op op_of<MergeSelectionsArgs>() { return Op::MergeSelections; }
template <> constexpr Op op_of<InvertSelectionArgs>() { return Op::InvertSelection; }
// clang-format on

template <class Args>
void run_call(const Plan& plan, const Args& args, Workspace workspace, Stream stream) {
  const core::Planned& planned = PlanAccess::planned(plan);
  if (planned.problem.op != op_of<Args>()) {
    throw Error(ErrorCode::InvalidArgument, "plan",
                std::string("plan: expected a plan of ") + to_string(op_of<Args>()) +
                    ", got one of " + to_string(planned.problem.op));
  }
  const core::Call call = gather(args);
  core::validate_call(planned.problem, call, workspace, planned.workspace_bytes);
  planned.run(call, workspace, stream);
}

/// The workspace of a one-call form.
class OwnedWorkspace {
 public:
  explicit OwnedWorkspace(std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    data_.reset(::operator new(bytes, std::align_val_t(kWorkspaceAlignment), std::nothrow));
    if (!data_) {
      throw Error(ErrorCode::OutOfMemory, "workspace",
                  "workspace: could not allocate " + std::to_string(bytes) + " bytes");
    }
  }
  Workspace view() const { return {data_.get(), bytes_}; }

 private:
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(kWorkspaceAlignment)); }
  };
  std::unique_ptr<void, Free> data_;
  std::size_t bytes_;
};

template <class Args>
Problem derive(const Args& args, const Settings& settings) {
  return core::derive_problem(op_of<Args>(), gather(args), settings);
}

template <class Args>
void plan_and_run(const Args& args, const Settings& settings) {
  const Problem problem = derive(args, settings);
  if (problem.device.type != DeviceType::Cpu) {
    throw Error(ErrorCode::InvalidArgument, "device",
                "device: one-call forms take tensors on cpu, got " + to_string(problem.device) +
                    "; use make_plan and run");
  }
  const Plan plan = make_plan(problem);
  const OwnedWorkspace workspace(plan.workspace_bytes());
  run_call(plan, args, workspace.view(), {});
}

/// Planning allocates too; whatever allocation fails, the caller gets an Error.
template <class Args>
void call_once(const Args& args, const Settings& settings) {
  try {
    plan_and_run(args, settings);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::OutOfMemory, "", "out of memory while planning");
  }
}

}  // namespace

Plan::Plan(std::shared_ptr<const core::Planned> planned) noexcept : planned_(std::move(planned)) {}
const Problem& Plan::problem() const noexcept { return planned_->problem; }
const std::string& Plan::backend() const noexcept { return planned_->backend; }
const std::string& Plan::isa() const noexcept { return planned_->isa; }
std::size_t Plan::workspace_bytes() const noexcept { return planned_->workspace_bytes; }
std::string Plan::to_string() const {
  return msa::to_string(planned_->problem) + "\nbackend " + planned_->backend + "\nisa " +
         planned_->isa + "\nworkspace " + std::to_string(planned_->workspace_bytes) + "\n" +
         planned_->decisions();
}

Support supports(const Problem& given) {
  Support support;
  Problem problem = given;
  problem.options = core::with_environment(problem.options);
  try {
    core::validate_problem(problem);
  } catch (const Error& error) {
    support.error = error.what();
    return support;
  }
  for (const core::Backend* backend : core::backends()) {
    const std::string reason = backend->rejects(problem);
    support.backends.push_back({std::string(backend->name()), reason.empty(), reason});
    support.supported = support.supported || reason.empty();
  }
  return support;
}

Plan make_plan(const Problem& given) {
  Problem problem = given;
  problem.options = core::with_environment(problem.options);
  core::validate_problem(problem);
  std::string reasons;
  for (const core::Backend* backend : core::backends()) {
    const std::string reason = backend->rejects(problem);
    if (reason.empty()) return PlanAccess::make(backend->plan(problem));
    reasons += std::string("; ") + std::string(backend->name()) + ": " + reason;
  }
  throw Error(ErrorCode::Unsupported, "problem",
              "no backend serves " + to_string(problem) + reasons);
}

std::optional<Fault> check(const Plan& plan, Workspace workspace, Stream stream) {
  return PlanAccess::planned(plan).check(workspace, stream);
}

// clang-format off
void run(const Plan& p, const DenseAttentionArgs& a, Workspace w, Stream s) { run_call(p, a, w, s); }
void run(const Plan& p, const BlockScoresArgs& a, Workspace w, Stream s) { run_call(p, a, w, s); }
void run(const Plan& p, const SelectTopkArgs& a, Workspace w, Stream s) { run_call(p, a, w, s); }
void run(const Plan& p, const SelectBlocksArgs& a, Workspace w, Stream s) { run_call(p, a, w, s); }
void run(const Plan& p, const SparseAttentionArgs& a, Workspace w, Stream s) { run_call(p, a, w, s); }
void run(const Plan& p, const MsaAttentionArgs& a, Workspace w, Stream s) { run_call(p, a, w, s); }
void run(const Plan& p, const MergeStatesArgs& a, Workspace w, Stream s) { run_call(p, a, w, s); }
void run(const Plan& p, const MergeSelectionsArgs& a, Workspace w, Stream s) { run_call(p, a, w, s); }
void run(const Plan& p, const InvertSelectionArgs& a, Workspace w, Stream s) { run_call(p, a, w, s); }

Problem problem_of(const DenseAttentionArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const BlockScoresArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const SelectTopkArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const SelectBlocksArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const SparseAttentionArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const MsaAttentionArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const MergeStatesArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const MergeSelectionsArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const InvertSelectionArgs& a, const Settings& s) { return derive(a, s); }

void dense_attention(const DenseAttentionArgs& a, const Settings& s) { call_once(a, s); }
void block_scores(const BlockScoresArgs& a, const Settings& s) { call_once(a, s); }
void select_topk(const SelectTopkArgs& a, const Settings& s) { call_once(a, s); }
void select_blocks(const SelectBlocksArgs& a, const Settings& s) { call_once(a, s); }
void sparse_attention(const SparseAttentionArgs& a, const Settings& s) { call_once(a, s); }
void msa_attention(const MsaAttentionArgs& a, const Settings& s) { call_once(a, s); }
void merge_states(const MergeStatesArgs& a, const Settings& s) { call_once(a, s); }
void merge_selections(const MergeSelectionsArgs& a, const Settings& s) { call_once(a, s); }
void invert_selection(const InvertSelectionArgs& a, const Settings& s) { call_once(a, s); }
// clang-format on

}  // namespace msa
