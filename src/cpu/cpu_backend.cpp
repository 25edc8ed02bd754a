// SPDX-License-Identifier: MIT
// The CPU backend: picks an instruction-set level, asks the planner of the operation for a stage,
// runs it.
#include <omp.h>

#include <algorithm>

#include "core/backend.h"
#include "core/contents.h"
#include "core/fields.h"
#include "core/floats.h"
#include "core/op_traits.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/select.h"
#include "cpu/stage.h"

namespace msa::cpu {
namespace {

using Planner = StagePtr (*)(const Problem&, const Machine&);

/// The planner of an operation; null: the operation is not served.
Planner planner_of(Op op) {
  switch (op) {
    case Op::DenseAttention:
    case Op::SparseAttention:
      return plan_attention;
    case Op::MsaAttention:
      return plan_msa;
    case Op::MergeStates:
      return plan_merge_states;
    case Op::BlockScores:
    case Op::SelectBlocks:
      return plan_selection;
    case Op::SelectTopk:
      return plan_select_topk;
    case Op::MergeSelections:
      return plan_merge_selections;
    case Op::InvertSelection:
      return plan_invert_selection;
    case Op::QuantizeKv:
      return plan_quantize_kv;
    case Op::QuantizeIndex:
      return plan_quantize_index;
    case Op::SparseAttentionBackward:
    case Op::DenseAttentionBackward:
      return plan_backward;
    case Op::IndexLoss:
      return plan_index_loss;
  }
  return nullptr;
}

/// The level that the options ask for, or the best that this machine has. Says why not in `reason`.
Isa choose_isa(const std::string& name, std::string& reason) {
  const core::CpuFeatures& cpu = core::cpu_features();
  std::string names;
  for (const Isa isa : kIsas) {
    const std::string lacks = why_not(isa, cpu);
    if (name.empty() && lacks.empty()) return isa;
    if (name == to_string(isa)) {
      if (!lacks.empty()) reason = "isa " + name + " " + lacks;
      return isa;
    }
    names += (names.empty()         ? ""
              : isa == kIsas.back() ? " or "
                                    : ", ") +
             std::string(to_string(isa));
  }
  reason = "isa: expected " + names + ", got \"" + name + "\"";
  return Isa::Scalar;
}

/// Why the dims are not served; empty: they are.
std::string rejects_shape(const Problem& p) {
  const auto odd = [](const char* name, std::int64_t value) {
    return std::string(name) + " " + std::to_string(value) +
           ": multiples of 16 up to 256 are served";
  };
  const auto served = [](std::int64_t dim) { return dim % 16 == 0 && dim <= kMaxDim; };
  const core::OpTraits op = core::op_traits(p.op);
  if (op.indexes && !served(p.index.dim)) return odd("index_dim", p.index.dim);
  if (op.selects && p.selection.precision == Precision::Fast)
    return "precision is exact here: the codes of a filter never decide";
  if (op.teaches && !served(p.attention.head_dim)) return odd("head_dim", p.attention.head_dim);
  if (!op.attends) return {};
  if (!served(p.attention.head_dim)) return odd("head_dim", p.attention.head_dim);
  if (!served(p.attention.value_dim)) return odd("value_dim", p.attention.value_dim);
  return {};
}

bool serves(DType dtype) {
  switch (dtype) {
    case DType::F32:
    case DType::F16:
    case DType::BF16:
      return true;
    case DType::I32:
    case DType::I64:
    case DType::E4M3:
    case DType::I8:
    case DType::E2M1:
      return false;
  }
  return false;
}

/// Why a dtype that the operation uses is not served; empty: they all are.
std::string rejects_dtypes(const Problem& p) {
  const core::OpTraits op = core::op_traits(p.op);
  const bool writes_out = op.attends || p.op == Op::MergeStates;
  const auto odd = [](DType dtype) {
    return std::string("dtype ") + msa::to_string(dtype) + " is not served";
  };
  const DType q = p.attention.q.storage, kv = core::kv_format(p).storage;
  const bool codes = op.attends && q == DType::E4M3;
  if (writes_out && !codes && !serves(q)) return odd(q);
  if (op.attends && kv != DType::E4M3 && kv != DType::E2M1 && !serves(kv)) return odd(kv);
  const DType index_q = p.index.q.storage, index_k = core::index_k_format(p).storage;
  if (op.indexes && index_q != DType::E4M3 && !serves(index_q)) return odd(index_q);
  if (op.indexes && index_k != DType::E4M3 && index_k != DType::E2M1 && !serves(index_k))
    return odd(index_k);
  if (writes_out && p.outputs.out && !serves(p.outputs.dtype)) return odd(p.outputs.dtype);
  return {};
}

class CpuPlanned final : public core::Planned {
 public:
  CpuPlanned(const Problem& given, const Machine& machine, StagePtr planned_stage)
      : Planned(given), stage_(std::move(planned_stage)), threads_(machine.threads) {
    backend = "cpu";
    isa = machine.kernels->isa;
    workspace_bytes = stage_->workspace_bytes();
  }

  void run(const core::Call& call, Workspace workspace, Stream) const override {
    const core::DefaultFloats floats;
    core::validate_contents(problem, call);
    stage_->run(call, {0, core::num_query_rows(call)}, static_cast<std::byte*>(workspace.data));
  }

  std::string decisions() const override {
    return "threads " + std::to_string(threads_) + "\n" + stage_->decisions();
  }

 private:
  StagePtr stage_;
  int threads_;
};

class CpuBackend final : public core::Backend {
 public:
  std::string_view name() const override { return "cpu"; }

  std::string rejects(const Problem& problem) const override {
    if (!problem.options.backend.empty() && problem.options.backend != name()) {
      return "not the backend asked for (" + problem.options.backend + ")";
    }
    if (problem.device.type != DeviceType::Cpu)
      return "tensors on " + msa::to_string(problem.device);
    if (const std::string dtypes = rejects_dtypes(problem); !dtypes.empty()) return dtypes;
    if (planner_of(problem.op) == nullptr)
      return std::string(msa::to_string(problem.op)) + " is not served";
    if (const std::string shape = rejects_shape(problem); !shape.empty()) return shape;
    std::string reason;
    choose_isa(problem.options.isa, reason);
    return reason;
  }

  std::shared_ptr<const core::Planned> plan(const Problem& problem) const override {
    std::string reason;
    Machine machine;
    machine.isa = choose_isa(problem.options.isa, reason);
    machine.kernels = find_kernels(machine.isa);
    const int wanted =
        problem.options.threads > 0 ? problem.options.threads : omp_get_max_threads();
    machine.threads = std::min(wanted, omp_get_thread_limit());
    return std::make_shared<CpuPlanned>(problem, machine, planner_of(problem.op)(problem, machine));
  }

  BackendInfo info() const override {
    BackendInfo info;
    info.name = "cpu";
    info.available = true;
    const core::CpuFeatures& cpu = core::cpu_features();
    for (const Isa isa : kIsas) {
      if (find_kernels(isa) == nullptr) continue;  // of another processor family
      const std::string lacks = why_not(isa, cpu);
      info.isas.push_back({to_string(isa), lacks.empty(), lacks});
    }
    return info;
  }
};

}  // namespace
}  // namespace msa::cpu

namespace msa::core {

const Backend& cpu_backend() {
  static const cpu::CpuBackend backend;
  return backend;
}

}  // namespace msa::core
