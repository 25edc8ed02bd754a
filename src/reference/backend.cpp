// SPDX-License-Identifier: MIT
// The reference backend: serves every legal problem on host memory, slowly, with one thread.
#include "core/backend.h"

#include "core/contents.h"
#include "core/floats.h"
#include "reference/operations.h"

namespace msa::reference {
namespace {

class ReferencePlanned final : public core::Planned {
 public:
  explicit ReferencePlanned(const Problem& given) : Planned(given) {
    backend = "reference";
    isa = "scalar";
    workspace_bytes = reference::workspace_bytes(given);
  }
  void run(const core::Call& call, Workspace workspace, Stream) const override {
    const core::DefaultFloats floats;
    core::validate_contents(problem, call);
    reference::run(problem, call, cut(problem, workspace));
  }
  std::string decisions() const override { return "arithmetic f64\nthreads 1\n"; }
};

class ReferenceBackend final : public core::Backend {
 public:
  std::string_view name() const override { return "reference"; }
  std::string rejects(const Problem& problem) const override {
    // Nobody gets an oracle, a thousand times slower than a kernel, by accident.
    if (problem.options.backend != name()) return "serves only where options.backend names it";
    if (problem.device.type != DeviceType::Cpu) return "tensors on " + to_string(problem.device);
    return "";
  }
  std::shared_ptr<const core::Planned> plan(const Problem& problem) const override {
    return std::make_shared<ReferencePlanned>(problem);
  }
  BackendInfo info() const override { return {.name = "reference", .available = true}; }
};

}  // namespace
}  // namespace msa::reference

namespace msa::core {

const Backend& reference_backend() {
  static const reference::ReferenceBackend backend;
  return backend;
}

}  // namespace msa::core
