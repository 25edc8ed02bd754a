// SPDX-License-Identifier: MIT
// Every entry point: gather the tensors of a call, validate, plan, run. What an operation needs is
// written in core/fields.h; how it is computed, in the backends.
#include <memory>
#include <new>

#include "core/backend.h"
#include "core/derive.h"
#include "core/environment.h"
#include "core/fields.h"
#include "core/guard.h"
#include "core/validate.h"
#include "msa/msa.h"

namespace msa {

struct PlanAccess {
  static Plan make(std::shared_ptr<const core::Planned> planned) {
    return Plan(std::move(planned));
  }
  static const core::Planned& planned(const Plan& plan) {
    if (plan.planned_) return *plan.planned_;
    throw Error(ErrorCode::InvalidArgument, "plan", "plan: expected a plan, got an empty one");
  }
};

namespace {

/// Errors of the body say which operation they are of.
template <class Body>
auto naming(Op op, const Body& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw Error(error.code(), error.argument(), std::string(to_string(op)) + ": " + error.what());
  }
}

void run_call(const Plan& plan, Op op, const core::Call& call, Workspace workspace, Stream stream) {
  const core::Planned& planned = PlanAccess::planned(plan);
  if (planned.problem.op != op) {
    throw Error(ErrorCode::InvalidArgument, "plan",
                std::string("plan: expected a plan of ") + to_string(op) + ", got one of " +
                    to_string(planned.problem.op));
  }
  naming(op, [&] {
    core::validate_call(planned.problem, call, workspace, planned.workspace_bytes);
    planned.run(call, workspace, stream);
  });
}

template <class Args>
void run_args(const Plan& plan, const Args& args, Workspace workspace, Stream stream) {
  core::guarded(
      [&] { run_call(plan, core::FieldsOf<Args>::kOp, core::gather(args), workspace, stream); });
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

Problem derive_call(Op op, const core::Call& call, const Settings& settings) {
  return naming(op, [&] { return core::derive_problem(op, call, settings); });
}

template <class Args>
Problem derive(const Args& args, const Settings& settings) {
  return core::guarded(
      [&] { return derive_call(core::FieldsOf<Args>::kOp, core::gather(args), settings); });
}

void call_once(Op op, const core::Call& call, const Settings& settings) {
  const Problem problem = derive_call(op, call, settings);
  if (problem.device.type != DeviceType::Cpu) {
    throw Error(ErrorCode::InvalidArgument, "device",
                "device: one-call forms take tensors on cpu, got " + to_string(problem.device) +
                    "; use make_plan and run");
  }
  const Plan plan = make_plan(problem);
  const OwnedWorkspace workspace(plan.workspace_bytes());
  run_call(plan, op, call, workspace.view(), {});
}

template <class Args>
void args_once(const Args& args, const Settings& settings) {
  core::guarded([&] { call_once(core::FieldsOf<Args>::kOp, core::gather(args), settings); });
}

void expect_op(Op op) {
  if (!fields_of(op).empty()) return;
  throw Error(ErrorCode::InvalidArgument, "op",
              "op: expected an operation, got " + std::to_string(static_cast<int>(op)));
}

Support ask_backends(const Problem& given) {
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

Plan plan_problem(const Problem& given) {
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

}  // namespace

Plan::Plan(std::shared_ptr<const core::Planned> planned) noexcept : planned_(std::move(planned)) {}
const Problem& Plan::problem() const { return PlanAccess::planned(*this).problem; }
const std::string& Plan::backend() const { return PlanAccess::planned(*this).backend; }
const std::string& Plan::isa() const { return PlanAccess::planned(*this).isa; }
std::size_t Plan::workspace_bytes() const { return PlanAccess::planned(*this).workspace_bytes; }
std::string Plan::to_string() const {
  const core::Planned& planned = PlanAccess::planned(*this);
  return core::guarded([&] {
    return msa::to_string(planned.problem) + "\nbackend " + planned.backend + "\nisa " +
           planned.isa + "\nworkspace " + std::to_string(planned.workspace_bytes) + "\n" +
           planned.decisions();
  });
}

Support supports(const Problem& problem) {
  return core::guarded([&] { return ask_backends(problem); });
}

Plan make_plan(const Problem& problem) {
  return core::guarded([&] { return plan_problem(problem); });
}

std::optional<Fault> check(const Plan& plan, Workspace workspace, Stream stream) {
  return core::guarded([&] { return PlanAccess::planned(plan).check(workspace, stream); });
}

void run(const Plan& plan, const Operands& operands, Workspace workspace, Stream stream) {
  core::guarded([&] {
    const Op op = PlanAccess::planned(plan).problem.op;
    core::expect_no_strays(op, operands);
    run_call(plan, op, operands, workspace, stream);
  });
}

void core::attend(const Plan& plan, const Operands& operands, const AttendCall& call,
                  Workspace workspace, Stream stream) {
  const Planned& planned = PlanAccess::planned(plan);
  const Op op = Op::MsaAttention;
  if (planned.problem.op != op)
    throw Error(ErrorCode::InvalidArgument, "plan", "plan: expected one of msa_attention");
  expect_no_strays(op, operands);
  naming(op, [&] {
    validate_call(planned.problem, operands, workspace, planned.workspace_bytes);
    validate(call, planned.problem, operands);
    planned.attend(operands, call, workspace, stream);
  });
}

Problem problem_of(Op op, const Operands& operands, const Settings& settings) {
  return core::guarded([&] {
    expect_op(op);
    core::expect_no_strays(op, operands);
    return derive_call(op, operands, settings);
  });
}

void run_once(Op op, const Operands& operands, const Settings& settings) {
  core::guarded([&] {
    expect_op(op);
    core::expect_no_strays(op, operands);
    call_once(op, operands, settings);
  });
}

// clang-format off
void run(const Plan& p, const DenseAttentionArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }
void run(const Plan& p, const BlockScoresArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }
void run(const Plan& p, const SelectTopkArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }
void run(const Plan& p, const SelectBlocksArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }
void run(const Plan& p, const SparseAttentionArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }
void run(const Plan& p, const MsaAttentionArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }
void run(const Plan& p, const MergeStatesArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }
void run(const Plan& p, const MergeSelectionsArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }
void run(const Plan& p, const InvertSelectionArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }
void run(const Plan& p, const QuantizeKvArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }
void run(const Plan& p, const QuantizeIndexArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }
void run(const Plan& p, const SparseAttentionBackwardArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }
void run(const Plan& p, const DenseAttentionBackwardArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }
void run(const Plan& p, const IndexLossArgs& a, Workspace w, Stream s) { run_args(p, a, w, s); }

Problem problem_of(const DenseAttentionArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const BlockScoresArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const SelectTopkArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const SelectBlocksArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const SparseAttentionArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const MsaAttentionArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const MergeStatesArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const MergeSelectionsArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const InvertSelectionArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const QuantizeKvArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const QuantizeIndexArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const SparseAttentionBackwardArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const DenseAttentionBackwardArgs& a, const Settings& s) { return derive(a, s); }
Problem problem_of(const IndexLossArgs& a, const Settings& s) { return derive(a, s); }

void dense_attention(const DenseAttentionArgs& a, const Settings& s) { args_once(a, s); }
void block_scores(const BlockScoresArgs& a, const Settings& s) { args_once(a, s); }
void select_topk(const SelectTopkArgs& a, const Settings& s) { args_once(a, s); }
void select_blocks(const SelectBlocksArgs& a, const Settings& s) { args_once(a, s); }
void sparse_attention(const SparseAttentionArgs& a, const Settings& s) { args_once(a, s); }
void msa_attention(const MsaAttentionArgs& a, const Settings& s) { args_once(a, s); }
void merge_states(const MergeStatesArgs& a, const Settings& s) { args_once(a, s); }
void merge_selections(const MergeSelectionsArgs& a, const Settings& s) { args_once(a, s); }
void invert_selection(const InvertSelectionArgs& a, const Settings& s) { args_once(a, s); }
void quantize_kv(const QuantizeKvArgs& a, const Settings& s) { args_once(a, s); }
void quantize_index(const QuantizeIndexArgs& a, const Settings& s) { args_once(a, s); }
void sparse_attention_backward(const SparseAttentionBackwardArgs& a, const Settings& s) { args_once(a, s); }
void dense_attention_backward(const DenseAttentionBackwardArgs& a, const Settings& s) { args_once(a, s); }
void index_loss(const IndexLossArgs& a, const Settings& s) { args_once(a, s); }
// clang-format on

}  // namespace msa
