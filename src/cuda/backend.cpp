// SPDX-License-Identifier: MIT
// The CUDA backend: which problems the SM90 kernels serve, their workspace, and the launches of a
// run.
#include "core/backend.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <optional>
#include <string>

#include "cuda/attend_stage.h"
#include "cuda/decode_stage.h"
#include "cuda/device.h"
#include "cuda/invert_stage.h"
#include "cuda/layout.h"
#include "cuda/merge_stage.h"
#include "cuda/select_stage.h"
#include "msa/error.h"

namespace msa::cuda {
namespace {

/// Why this machine cannot serve tensors on GPU `index`; empty: it can.
std::string machine_rejects(const Machine& machine, int index) {
  if (machine.gpus.empty()) return machine.reason;
  if (index < 0 || index >= static_cast<int>(machine.gpus.size())) {
    return "there is no GPU " + std::to_string(index);
  }
  const GpuInfo& gpu = machine.gpus[static_cast<std::size_t>(index)];
  if (!gpu.fault.empty()) return gpu.fault;
  if (gpu.major != 9 || gpu.minor != 0) {
    return "the kernels need compute capability 9.0, " + gpu.name + " has " +
           std::to_string(gpu.major) + "." + std::to_string(gpu.minor);
  }
  return "";
}

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

/// Why no kernel serves the problem; the decode kernels take it where they can, the others the
/// rest.
std::string op_rejects(const Problem& problem) {
  if (DecodeStage::rejects(problem).empty()) return "";
  switch (problem.op) {
    case Op::DenseAttention: {
      const std::string why =
          problem.outputs.block_max ? SelectStage::rejects(maxima_problem(problem)) : "";
      return why.empty() && problem.outputs.out ? AttendStage::rejects(problem, false) : why;
    }
    case Op::SparseAttention:
      return AttendStage::rejects(problem, true);
    case Op::BlockScores:
    case Op::SelectTopk:
    case Op::SelectBlocks:
      return SelectStage::rejects(problem);
    case Op::MsaAttention: {
      const std::string why = SelectStage::rejects(problem);
      return why.empty() ? AttendStage::rejects(problem, true) : why;
    }
    case Op::MergeStates:
    case Op::MergeSelections:
      return MergeStage::rejects(problem);
    case Op::InvertSelection:
      return InvertStage::rejects(problem);
  }
  return std::string("there is no kernel for ") + to_string(problem.op);
}

std::optional<Fault> decode(StatusWord word) {
  if (word == kNoFault) return std::nullopt;
  Fault fault{.request = static_cast<std::int64_t>(word >> 40),
              .row = static_cast<std::int64_t>((word >> 8) & 0xffffffffu) - 1,
              .what = {}};
  fault.what = "no fault that a run writes: has the plan run in this workspace?";
  switch (static_cast<FaultKind>(word & 0xff)) {
    case FaultKind::Length:
      fault.what = "length outside the planned bounds or the tensors";
      break;
    case FaultKind::PageId:
      fault.what = "page id out of range";
      break;
    case FaultKind::BlockId:
      fault.what = "block id out of range";
      break;
    case FaultKind::Offset:
      fault.what = "key offset negative or not a multiple of the block size";
      break;
  }
  return fault;
}

bool selects(Op op) {
  return op == Op::BlockScores || op == Op::SelectTopk || op == Op::SelectBlocks ||
         op == Op::MsaAttention;
}
bool merges(Op op) { return op == Op::MergeStates || op == Op::MergeSelections; }
bool attends(const Problem& problem) {
  return problem.op == Op::SparseAttention || problem.op == Op::MsaAttention ||
         (problem.op == Op::DenseAttention && problem.outputs.out);
}

class CudaPlanned final : public core::Planned {
 public:
  CudaPlanned(const Problem& given, const GpuInfo& gpu) : Planned(given) {
    backend = "cuda";
    isa = "sm90";
    Layout layout;
    if (DecodeStage::rejects(given).empty()) {
      decode_.emplace(given, gpu, layout);
      workspace_bytes = layout.bytes();
      return;
    }
    if (given.op == Op::MsaAttention)
      ids_ =
          layout.take<int>(given.bounds.total_q * given.attention.heads_kv * given.selection.topk);
    if (attends(given)) attend_.emplace(given, gpu, given.op != Op::DenseAttention, layout);
    // Scores are done with before attention begins.
    Layout scores(attend_ ? attend_->run_begin() : layout.bytes());
    if (selects(given.op)) select_.emplace(given, gpu, scores);
    if (given.outputs.block_max) select_.emplace(maxima_problem(given), gpu, scores);
    if (merges(given.op)) merge_.emplace();
    if (given.op == Op::InvertSelection) invert_.emplace(given, layout);
    workspace_bytes = std::max(layout.bytes(), scores.bytes());
  }

  void run(const core::Call& call, Workspace workspace, Stream stream) const override {
    const DeviceGuard guard(problem.device.index);
    const auto native = static_cast<cudaStream_t>(stream.handle);
    void* const memory = workspace.data;
    if (decode_) return decode_->run(problem, call, memory, native);
    if (invert_) return invert_->run(problem, call, memory, native);
    if (attend_) {
      attend_->prepare(problem, call, memory, native);
    } else {
      static_assert(kNoFault == ~StatusWord{0}, "all bits set: what the memset writes");
      MSA_CUDA_CHECK(cudaMemsetAsync(kStatus.in(memory), 0xff, sizeof(StatusWord), native));
    }
    switch (problem.op) {
      case Op::BlockScores:
        return select_->run_scores(problem, call, memory, native);
      case Op::SelectTopk:
      case Op::SelectBlocks:
        return select_->run_selection(problem, call, call.block_ids, call.chosen_scores, memory,
                                      native);
      case Op::MsaAttention:
        return run_msa(call, memory, native);
      case Op::MergeStates:
      case Op::MergeSelections:
        return merge_->run(problem, call, memory, native);
      default:
        if (problem.outputs.block_max) {
          select_->run_scores(maxima_problem(problem), maxima_call(call), memory, native);
        }
        if (attend_) attend_->run(problem, call, call.block_ids_in, memory, native);
    }
  }

  std::optional<Fault> check(Workspace workspace, Stream stream) const override {
    const DeviceGuard guard(problem.device.index);
    const auto native = static_cast<cudaStream_t>(stream.handle);
    StatusWord word = kNoFault;
    MSA_CUDA_CHECK(cudaMemcpyAsync(&word, kStatus.in(workspace.data), sizeof(word),
                                   cudaMemcpyDeviceToHost, native));
    MSA_CUDA_CHECK(cudaStreamSynchronize(native));
    return decode(word);
  }

  std::string decisions() const override {
    if (decode_) return decode_->decisions();
    if (invert_) return invert_->decisions();
    return (select_ ? select_->decisions() : "") + (attend_ ? attend_->decisions() : "");
  }

 private:
  void run_msa(const core::Call& call, void* memory, cudaStream_t stream) const {
    const std::int64_t rows = call.q.shape[0];
    const Tensor ids = call.block_ids
                           ? call.block_ids
                           : make_tensor(ids_.in(memory), DType::I32,
                                         {rows, problem.attention.heads_kv, problem.selection.topk},
                                         problem.device);
    select_->run_selection(problem, call, ids, {}, memory, stream);
    attend_->run(problem, call, ids, memory, stream);
  }

  std::optional<DecodeStage> decode_{};  // requests of a few tokens: alone, or not at all
  std::optional<SelectStage> select_{};
  std::optional<AttendStage> attend_{};
  std::optional<MergeStage> merge_{};
  std::optional<InvertStage> invert_{};
  Piece<int> ids_{};  // msa_attention: where the caller does not want them
};

class CudaBackend final : public core::Backend {
 public:
  std::string_view name() const override { return "cuda"; }

  std::string rejects(const Problem& problem) const override {
    if (!problem.options.backend.empty() && problem.options.backend != name()) {
      return "backend " + problem.options.backend + " is asked for";
    }
    if (problem.device.type != DeviceType::Cuda)
      return "the tensors are on " + to_string(problem.device);
    if (std::string why = machine_rejects(machine(), problem.device.index); !why.empty())
      return why;
    return op_rejects(problem);
  }

  std::shared_ptr<const core::Planned> plan(const Problem& problem) const override {
    return std::make_shared<CudaPlanned>(
        problem, machine().gpus[static_cast<std::size_t>(problem.device.index)]);
  }

  BackendInfo info() const override {
    BackendInfo info{.name = "cuda", .available = false, .reason = machine().reason};
    for (std::size_t index = 0; index < machine().gpus.size(); ++index) {
      const std::string why = machine_rejects(machine(), static_cast<int>(index));
      if (why.empty()) {
        info.available = true;
        info.devices.push_back(machine().gpus[index].name);
      } else if (!info.available) {
        info.reason = why;
      }
    }
    if (info.available) info.reason.clear();
    return info;
  }
};

}  // namespace
}  // namespace msa::cuda

namespace msa::core {

const Backend& cuda_backend() {
  static const cuda::CudaBackend backend;
  return backend;
}

}  // namespace msa::core
