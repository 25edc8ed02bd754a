// SPDX-License-Identifier: MIT
// `msa run OP IN OUT`: reads the tensors of a problem from a file, runs one operation, writes its
// outputs to another. The names and shapes are those of docs/formats.md; nothing is written unless
// the whole call succeeded.
#include <fmt/format.h>

#include <map>

#include "cli.h"
#include "msa/msa.h"
#include "problem_file.h"
#include "safetensors.h"
#include "tensors.h"
#include "testkit/cuda_memory.h"

namespace msa::cli {
namespace {

struct RunCommand {
  FileOptions options;
  std::string in;
  std::string out;
};

/// What the operation writes, under the name that it has in the file.
struct Output {
  std::string name;
  OwnedTensor tensor;
};

/// Memory of the outputs: whatever the operation can write but block maxima, chosen scores and
/// counts of candidates, which nobody asked for.
std::vector<Output> make_outputs(FileProblem& file, Problem& problem) {
  problem.outputs.lse = attends(file.op);
  std::vector<Output> outputs;
  for (const Field& field : fields_of(file.op)) {
    if (field.is_input()) continue;
    if (field.planned != nullptr && !(problem.outputs.*field.planned)) continue;
    if (field.tensor == &msa::Operands::candidates) continue;
    const Tensor like = output_of(problem, file.operands.view(), field);
    const std::vector<std::int64_t> shape(like.shape.begin(), like.shape.begin() + like.rank);
    const bool scores = field.tensor == &msa::Operands::scores;
    outputs.push_back({scores ? "block_scores" : std::string(field.name), {like.dtype, shape}});
    field.in(file.operands) = outputs.back().tensor.view;
  }
  return outputs;
}

struct Ran {
  std::string backend;
  std::string isa;
};

std::uint64_t bytes_of(const Tensor& tensor) {
  auto bytes = static_cast<std::uint64_t>(size_in_bytes(tensor.dtype, 1));
  for (int i = 0; i < tensor.rank; ++i) bytes *= static_cast<std::uint64_t>(tensor.shape[i]);
  return bytes;
}

/// Copies of host tensors on a GPU, and the way back.
class DeviceCopies {
 public:
  explicit DeviceCopies(testkit::MemorySpace& space) : space_(space) {}
  DeviceCopies(const DeviceCopies&) = delete;
  DeviceCopies& operator=(const DeviceCopies&) = delete;
  ~DeviceCopies() {
    for (const Copy& copy : copies_) space_.release(copy.data);
  }

  /// Makes `tensor` a view of a copy.
  void move(Tensor& tensor) {
    if (!tensor) return;
    const Copy copy{space_.allocate(bytes_of(tensor)), tensor};
    copies_.push_back(copy);
    space_.copy_in(copy.data, tensor.data, bytes_of(tensor));
    tensor.data = copy.data;
    tensor.device = space_.device();
  }

  void fetch(const Tensor& host) {
    for (const Copy& copy : copies_) {
      if (copy.host.data == host.data) space_.copy_out(host.data, copy.data, bytes_of(host));
    }
  }

 private:
  struct Copy {
    void* data = nullptr;
    Tensor host{};
  };
  testkit::MemorySpace& space_;
  std::vector<Copy> copies_;
};

/// What a GPU finds wrong with index tensors it tells afterwards; the CPU throws it.
void require_no_fault(const std::optional<Fault>& fault) {
  if (!fault) return;
  const std::string row = fault->row >= 0 ? fmt::format(", query row {}", fault->row) : "";
  throw Error(ErrorCode::InvalidContent, "batch",
              fmt::format("request {}{}: {}", fault->request, row, fault->what));
}

Ran run_on_gpu(const testkit::Operands& host, Problem problem, testkit::MemorySpace& space) {
  problem.device = space.device();
  const Plan plan = make_plan(problem);
  testkit::Operands on_device = host;
  DeviceCopies copies(space);
  testkit::for_each_tensor(on_device, [&](Tensor& tensor) { copies.move(tensor); });
  const testkit::GuardedWorkspace workspace(plan.workspace_bytes(), space);
  testkit::run(plan, on_device, workspace.view(), space.stream());
  require_no_fault(check(plan, workspace.view(), space.stream()));
  testkit::Operands outputs = host;
  std::size_t index = 0;
  const std::size_t first = testkit::first_output(host);
  testkit::for_each_tensor(outputs, [&](Tensor& tensor) {
    if (index++ >= first) copies.fetch(tensor);
  });
  return {plan.backend(), plan.isa()};
}

Ran compute(const FileProblem& file, const Problem& problem, const Settings& settings) {
  if (settings.options.backend == "cuda") {
    return run_on_gpu(file.operands, problem, *testkit::cuda_memory(0));
  }
  const Plan plan = make_plan(problem);
  const Buffer workspace(plan.workspace_bytes());
  testkit::run(plan, file.operands, {workspace.data(), plan.workspace_bytes()});
  return {plan.backend(), plan.isa()};
}

std::map<std::string, std::string> describe(const FileOptions& options, const Ran& ran) {
  const Settings& s = options.settings;
  std::map<std::string, std::string> metadata{
      {"msa.version", version()},
      {"msa.op", options.op},
      {"msa.backend", ran.backend},
      {"msa.isa", ran.isa},
      {"msa.options",
       fmt::format("block_size={} topk={} local_blocks={} init_blocks={} causal={} "
                   "softmax_scale={} threads={}",
                   s.block_size, s.topk, s.local_blocks, s.init_blocks, s.causal,
                   s.softmax_scale ? fmt::format("{}", *s.softmax_scale) : "default",
                   s.options.threads ? fmt::format("{}", s.options.threads) : "default")}};
  return metadata;
}

void write_outputs(const RunCommand& command, const std::vector<Output>& outputs, const Ran& ran) {
  std::vector<safetensors::View> views;
  for (const auto& [name, tensor] : outputs) {
    const auto* shape = tensor.view.shape.data();
    views.push_back({name, tensor.view.dtype, {shape, shape + tensor.view.rank}, tensor.view.data});
  }
  safetensors::write(command.out, views, describe(command.options, ran));
}

int run_file(RunCommand command) {
  require_backend(command.options.settings.options);
  TensorFiles files({command.in}, false);
  FileProblem file;
  read_problem(files, command.options, file);
  const Settings& settings = command.options.settings;
  try {
    Problem problem = testkit::problem_of(file.op, file.operands, settings);
    const std::vector<Output> outputs = make_outputs(file, problem);
    write_outputs(command, outputs, compute(file, problem, settings));
  } catch (const Error& error) {
    const bool bad_argument = error.code() == ErrorCode::InvalidArgument && !blames_option(error);
    if (bad_argument || error.code() == ErrorCode::InvalidContent) {
      bad_input(command.in + ": " + error.what());
    }
    throw;
  }
  return kGood;
}

}  // namespace

void add_run(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("run", "Run one operation on the tensors of a safetensors file");
  auto run = std::make_shared<RunCommand>();
  command->add_option("op", run->options.op, "dense, scores, select, sparse or msa")
      ->required()
      ->check(CLI::IsMember({"dense", "scores", "select", "sparse", "msa"}));
  command->add_option("in", run->in, "Input file")->required();
  command->add_option("out", run->out, "Output file; appears whole or not at all")->required();
  const FileOptionSetters setters(*command, run->options);
  add_backend_options(*command, run->options.settings.options);
  command->callback([&action, run, setters] {
    setters.finish(run->options);
    action = [run] { return run_file(*run); };
  });
}

}  // namespace msa::cli
