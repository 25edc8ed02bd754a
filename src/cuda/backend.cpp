// SPDX-License-Identifier: MIT
// The CUDA backend: which problems its kernels serve, their workspace, and the launches of a run.
#include "core/backend.h"

#include <cuda_runtime_api.h>

#include <memory>
#include <optional>
#include <string>

#include "core/fields.h"
#include "core/op_traits.h"
#include "cuda/batch.h"
#include "cuda/device.h"
#include "cuda/layout.h"
#include "cuda/path.h"
#include "cuda/peers.h"
#include "cuda/tensor_map.h"
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
  // Which operations an instruction set has is asked later.
  std::string why;
  for (const Isa* isa : kIsas) {
    why = isa_rejects(*isa, gpu);
    if (why.empty()) return "";
  }
  return why;
}

std::optional<Fault> decode(StatusWord word) {
  if (word == kNoFault) return std::nullopt;
  Fault fault{.request = static_cast<std::int64_t>(word >> 40),
              .row = static_cast<std::int64_t>((word >> 8) & 0xffffffffu) - 1,
              .what = {}};
  fault.what = "no fault that a run writes: has the plan run in this workspace?";
  switch (static_cast<FaultKind>(word & 0xff)) {
    case FaultKind::Length:
      fault.what = "length or first new position outside the planned bounds or the tensors";
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

[[noreturn]] void refuse(const Field& field, const Tensor& tensor, const char* why) {
  const std::string name(field.name);
  throw Error(ErrorCode::InvalidArgument, name, name + ": " + why + ", got " + to_string(tensor));
}

/// What kernels read 16 bytes at a time must lie so, whatever the kernel: the copy engine takes
/// nothing else, and a kernel without it would be far slower without a word. Of four bits the
/// scales of a row, too. What stores keys reads each once, and takes any address.
void expect_aligned(const Problem& problem, const core::Call& call) {
  if (core::op_traits(problem.op).stores || core::op_traits(problem.op).copies) return;
  for (const Field& field : fields_of(problem.op)) {
    const bool formatted = field.element == Element::Q || field.element == Element::Kv ||
                           field.element == Element::IndexQ || field.element == Element::IndexK ||
                           field.element == Element::Filter || field.tensor == &Operands::out_in ||
                           field.tensor == &Operands::dout;
    const bool grouped = (field.element == Element::KvScale &&
                          core::counts_groups(core::kv_format(problem).scale)) ||
                         (field.element == Element::IndexKScale &&
                          core::counts_groups(core::index_k_format(problem).scale));
    if (!field.is_input() || field.tensor == nullptr || (!formatted && !grouped)) continue;
    const Tensor& tensor = field.in(call);
    if (!tensor) continue;
    const char* why = grouped ? group_scales_refuse(tensor) : copy_engine_refuses(tensor);
    if (*why != '\0') refuse(field, tensor, why);
  }
}

class CudaPlanned final : public core::Planned {
 public:
  CudaPlanned(const Problem& given, const GpuInfo& gpu) : Planned(given) {
    std::string why;
    const PathRow* row = find_path(given, gpu, why);
    if (row == nullptr)
      throw Error(ErrorCode::Internal, "", "cuda: planned without a path: " + why);
    backend = "cuda";
    isa = row->isa->name;
    Layout layout;
    path_ = row->plan(given, gpu, layout);
    workspace_bytes = layout.bytes();
  }

  void run(const core::Call& call, Workspace workspace, Stream stream) const override {
    expect_aligned(problem, call);
    const DeviceGuard guard(problem.device.index);
    path_->run(problem, call, workspace.data, static_cast<cudaStream_t>(stream.handle));
  }

  void attend(const core::Call& call, const core::AttendCall& among, Workspace workspace,
              Stream stream) const override {
    expect_aligned(problem, call);
    const DeviceGuard guard(problem.device.index);
    if (!path_->attend(problem, call, among, workspace.data,
                       static_cast<cudaStream_t>(stream.handle)))
      no_peers();
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

  std::string decisions() const override { return path_->decisions(); }

 private:
  std::unique_ptr<const Path> path_;
};

/// Available where some GPU of this machine runs it.
IsaInfo info_of(const Isa& isa) {
  IsaInfo info{.name = isa.name, .available = false, .reason = machine().reason};
  for (const GpuInfo& gpu : machine().gpus) {
    const std::string why = gpu.fault.empty() ? isa_rejects(isa, gpu) : gpu.fault;
    if (why.empty()) return {.name = isa.name, .available = true};
    if (info.reason.empty()) info.reason = why;
  }
  return info;
}

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
    std::string why;
    find_path(problem, machine().gpus[static_cast<std::size_t>(problem.device.index)], why);
    return why;
  }

  std::shared_ptr<const core::Planned> plan(const Problem& problem) const override {
    return std::make_shared<CudaPlanned>(
        problem, machine().gpus[static_cast<std::size_t>(problem.device.index)]);
  }

  void choose(const core::ChooseCall& call, Stream stream) const override {
    expect_gpu(call.block_ids.device.index);
    cuda::choose(call, static_cast<cudaStream_t>(stream.handle));
  }
  void join(const core::JoinCall& call, Stream stream) const override {
    expect_gpu(call.out.device.index);
    cuda::join(call, static_cast<cudaStream_t>(stream.handle));
  }

  void deal(const core::DealCall& call, Stream stream) const override {
    expect_gpu(call.pages.device.index);
    cuda::deal(call, static_cast<cudaStream_t>(stream.handle));
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
    for (const Isa* isa : kIsas) info.isas.push_back(info_of(*isa));
    return info;
  }

 private:
  static void expect_gpu(int index) {
    if (const std::string why = machine_rejects(machine(), index); !why.empty())
      throw Error(ErrorCode::Unsupported, "device", "device: " + why);
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
