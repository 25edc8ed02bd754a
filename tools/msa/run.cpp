// SPDX-License-Identifier: MIT
// `msa run OP IN OUT`: reads the tensors of a problem from a file, runs one operation, writes its
// outputs to another. The names and shapes are those of docs/formats.md; nothing is written unless
// the whole call succeeded.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <span>
#include <string_view>

#include "cli.h"
#include "msa/msa.h"
#include "safetensors.h"
#include "tensors.h"
#include "testkit/cuda_memory.h"

namespace msa::cli {
namespace {

using safetensors::printable;

enum class RunOp { Dense, Scores, Select, Sparse, Msa };

constexpr std::array<const char*, 13> kKnownNames{"q",          "k",
                                                  "v",          "k_cache",
                                                  "v_cache",    "index_q",
                                                  "index_k",    "index_k_cache",
                                                  "page_table", "cu_seqlens_q",
                                                  "seqlens_k",  "q_offsets",
                                                  "block_ids"};

struct RunOptions {
  std::string op;
  std::string in;
  std::string out;
  Settings settings;
  bool topk_given = false;
  bool no_causal = false;
  float softmax_scale = 0;
  bool scale_given = false;
};

[[noreturn]] void bad_input(const std::string& message) { throw Failure(kBadInput, message); }

/// The tensors of the input file that the operation needs, read into memory.
class Input {
 public:
  explicit Input(const std::string& path) : file_(path) {
    for (const safetensors::Entry& entry : file_.header().entries) {
      if (std::find(kKnownNames.begin(), kKnownNames.end(), entry.name) == kKnownNames.end()) {
        bad_input(fmt::format("{}: tensor {} is not known; known are {}", path,
                              printable(entry.name), fmt::join(kKnownNames, ", ")));
      }
    }
  }

  bool has(std::string_view name) const { return file_.find(name) != nullptr; }

  /// Reads the tensor, or returns one that was not given.
  Tensor optional(const std::string& name) {
    const safetensors::Entry* entry = file_.find(name);
    if (entry == nullptr) return {};
    if (entry->shape.empty() || entry->shape.size() > msa::kMaxRank) {
      bad_input(fmt::format("{}: tensor {}: expected a rank of 1 to {}, got {}", file_.path(),
                            printable(name), msa::kMaxRank, entry->shape.size()));
    }
    OwnedTensor& tensor = tensors_[name];
    if (!tensor) {
      tensor = OwnedTensor(entry->dtype, entry->shape);
      file_.read(*entry, tensor.memory.data());
    }
    return tensor.view;
  }

  Tensor required(const std::string& name, const std::string& op, int rank) {
    const Tensor tensor = optional(name);
    if (!tensor) bad_input(fmt::format("{}: {} needs the tensor '{}'", file_.path(), op, name));
    check_rank(name, tensor, rank);
    return tensor;
  }

  void check_rank(const std::string& name, const Tensor& tensor, int rank) const {
    if (tensor.rank == rank) return;
    bad_input(fmt::format("{}: tensor '{}': expected a rank of {}, got {}", file_.path(), name,
                          rank, to_string(tensor)));
  }

  const std::string& path() const { return file_.path(); }

 private:
  safetensors::File file_;
  std::map<std::string, OwnedTensor> tensors_;
};

/// Keys under `name`, ragged [N, H, D], or under `name`_cache, paged [P, S, H, D].
Tensor read_keys(Input& input, const std::string& op, const std::string& name, bool paged) {
  const std::string cache = name + "_cache";
  if (input.has(name) && input.has(cache)) {
    bad_input(fmt::format("{}: expected either '{}' or '{}', got both", input.path(), name, cache));
  }
  if (paged != input.has(cache) && (input.has(name) || input.has(cache))) {
    bad_input(
        fmt::format("{}: expected all keys ragged or all in caches, got '{}' beside the others",
                    input.path(), paged ? name : cache));
  }
  return input.required(paged ? cache : name, op, paged ? 4 : 3);
}

/// Lengths of a batch, and what follows from them.
struct Lengths {
  Batch batch;
  std::array<std::int32_t, 2> one_cu{};  // memory of the lengths of a single request
  std::array<std::int32_t, 1> one_k{};
  std::int64_t longest_k = 0;
};

std::int32_t as_int32(const Input& input, const std::string& name, std::int64_t value) {
  if (value > INT32_MAX) {
    bad_input(fmt::format("{}: expected at most 2^31 - 1 rows of '{}', got {}", input.path(), name,
                          value));
  }
  return static_cast<std::int32_t>(value);
}

void check_int32(const Input& input, const std::string& name, const Tensor& tensor) {
  if (tensor && tensor.dtype != DType::I32) {
    bad_input(fmt::format("{}: tensor '{}': expected dtype i32, got {}", input.path(), name,
                          to_string(tensor)));
  }
}

/// Longest seqlens_k, each checked against the rows there are: output shapes follow from it.
std::int64_t longest_key_length(const Input& input, const Tensor& seqlens_k, std::int64_t rows) {
  const std::span lengths(static_cast<const std::int32_t*>(seqlens_k.data),
                          static_cast<std::size_t>(seqlens_k.shape[0]));
  std::int64_t longest = 0;
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    if (lengths[b] < 0 || lengths[b] > rows) {
      bad_input(
          fmt::format("{}: tensor 'seqlens_k': expected lengths of 0 to {}, got {} for request {}",
                      input.path(), rows, lengths[b], b));
    }
    longest = std::max<std::int64_t>(longest, lengths[b]);
  }
  return longest;
}

void read_lengths(Input& input, const std::string& op, const Tensor& queries, const Tensor& keys,
                  bool paged, Lengths& lengths) {
  Batch& batch = lengths.batch;
  const bool given = input.has("cu_seqlens_q") || input.has("seqlens_k");
  if (given || paged) {
    batch.cu_seqlens_q = input.required("cu_seqlens_q", op, 1);
    batch.seqlens_k = input.required("seqlens_k", op, 1);
  } else {
    lengths.one_cu = {0, as_int32(input, "q", queries.shape[0])};
    lengths.one_k = {as_int32(input, "k", keys.shape[0])};
    batch.cu_seqlens_q = make_tensor(lengths.one_cu.data(), DType::I32, {2});
    batch.seqlens_k = make_tensor(lengths.one_k.data(), DType::I32, {1});
  }
  if (paged) batch.page_table = input.required("page_table", op, 2);
  batch.q_offsets = input.optional("q_offsets");
  check_int32(input, "cu_seqlens_q", batch.cu_seqlens_q);
  check_int32(input, "seqlens_k", batch.seqlens_k);
  check_int32(input, "q_offsets", batch.q_offsets);
  std::int64_t rows = keys.shape[0];
  if (paged && __builtin_mul_overflow(batch.page_table.shape[1], keys.shape[1], &rows)) {
    bad_input(fmt::format("{}: tensor 'page_table': {} pages of {} tokens overflow", input.path(),
                          batch.page_table.shape[1], keys.shape[1]));
  }
  lengths.longest_k = longest_key_length(input, batch.seqlens_k, rows);
}

/// Everything that one operation reads and writes.
struct Work {
  Tensor q{}, k{}, v{}, index_q{}, index_k{}, ids_in{};
  Lengths lengths;
  OwnedTensor out, lse, block_ids, scores;
};

bool attends(RunOp op) { return op == RunOp::Dense || op == RunOp::Sparse || op == RunOp::Msa; }
bool indexes(RunOp op) { return op == RunOp::Scores || op == RunOp::Select || op == RunOp::Msa; }

void read_work(Input& input, RunOp op, RunOptions& options, Work& work) {
  const bool paged =
      (attends(op) && input.has("k_cache")) || (!attends(op) && input.has("index_k_cache"));
  if (attends(op)) {
    work.q = input.required("q", options.op, 3);
    work.k = read_keys(input, options.op, "k", paged);
    work.v = read_keys(input, options.op, "v", paged);
  }
  if (indexes(op)) {
    work.index_q = input.required("index_q", options.op, 3);
    work.index_k = read_keys(input, options.op, "index_k", paged);
  }
  if (op == RunOp::Sparse) {
    work.ids_in = input.required("block_ids", options.op, 3);
    if (options.topk_given && options.settings.topk != work.ids_in.shape[2]) {
      throw Failure(kUsage, fmt::format("--topk: expected {}, the width of block_ids, got {}",
                                        work.ids_in.shape[2], options.settings.topk));
    }
    options.settings.topk = work.ids_in.shape[2];
  }
  const Tensor& queries = attends(op) ? work.q : work.index_q;
  const Tensor& keys = attends(op) ? work.k : work.index_k;
  read_lengths(input, options.op, queries, keys, paged, work.lengths);
}

void make_outputs(RunOp op, const Settings& settings, Work& work) {
  const std::int64_t rows = (attends(op) ? work.q : work.index_q).shape[0];
  if (attends(op)) {
    const std::int64_t heads = work.q.shape[1];
    work.out = OwnedTensor(work.q.dtype, {rows, heads, work.v.shape[work.v.rank - 1]});
    work.lse = OwnedTensor(DType::F32, {rows, heads});
  }
  if (op == RunOp::Select || op == RunOp::Msa) {
    work.block_ids = OwnedTensor(DType::I32, {rows, work.index_q.shape[1], settings.topk});
  }
  if (op == RunOp::Scores) {
    const std::int64_t blocks = work.lengths.longest_k / settings.block_size +
                                (work.lengths.longest_k % settings.block_size != 0);
    work.scores = OwnedTensor(DType::F32, {rows, work.index_q.shape[1], blocks});
  }
}

struct Ran {
  std::string backend;
  std::string isa;
};

std::uint64_t bytes_of(const Tensor& tensor) {
  auto bytes = static_cast<std::uint64_t>(item_bits(tensor.dtype) / 8);
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

void for_each_input(DenseAttentionArgs& a, const auto& visit) {
  for (Tensor* t : {&a.q, &a.k, &a.v}) visit(*t);
}
void for_each_input(BlockScoresArgs& a, const auto& visit) {
  for (Tensor* t : {&a.index_q, &a.index_k}) visit(*t);
}
void for_each_input(SelectBlocksArgs& a, const auto& visit) {
  for (Tensor* t : {&a.index_q, &a.index_k}) visit(*t);
}
void for_each_input(SparseAttentionArgs& a, const auto& visit) {
  for (Tensor* t : {&a.q, &a.k, &a.v, &a.block_ids}) visit(*t);
}
void for_each_input(MsaAttentionArgs& a, const auto& visit) {
  for (Tensor* t : {&a.q, &a.k, &a.v, &a.index_q, &a.index_k}) visit(*t);
}
void for_each_output(DenseAttentionArgs& a, const auto& visit) {
  for (Tensor* t : {&a.out, &a.lse}) visit(*t);
}
void for_each_output(BlockScoresArgs& a, const auto& visit) { visit(a.scores); }
void for_each_output(SelectBlocksArgs& a, const auto& visit) { visit(a.block_ids); }
void for_each_output(SparseAttentionArgs& a, const auto& visit) {
  for (Tensor* t : {&a.out, &a.lse}) visit(*t);
}
void for_each_output(MsaAttentionArgs& a, const auto& visit) {
  for (Tensor* t : {&a.out, &a.lse, &a.block_ids}) visit(*t);
}

/// What a GPU finds wrong with index tensors it tells afterwards; the CPU throws it.
void require_no_fault(const std::optional<Fault>& fault) {
  if (!fault) return;
  const std::string row = fault->row >= 0 ? fmt::format(", query row {}", fault->row) : "";
  throw Error(ErrorCode::InvalidContent, "batch",
              fmt::format("request {}{}: {}", fault->request, row, fault->what));
}

template <class Args>
Ran plan_and_run_on_gpu(const Args& host, Problem problem, testkit::MemorySpace& space) {
  problem.device = space.device();
  const Plan plan = make_plan(problem);
  Args args = host;
  DeviceCopies copies(space);
  const auto move = [&](Tensor& tensor) { copies.move(tensor); };
  for_each_input(args, move);
  for_each_output(args, move);
  for (Tensor* t : {&args.batch.cu_seqlens_q, &args.batch.seqlens_k, &args.batch.page_table,
                    &args.batch.q_offsets}) {
    move(*t);
  }
  const testkit::GuardedWorkspace workspace(plan.workspace_bytes(), space);
  msa::run(plan, args, workspace.view(), space.stream());
  require_no_fault(check(plan, workspace.view(), space.stream()));
  Args outputs = host;
  for_each_output(outputs, [&](Tensor& tensor) {
    if (tensor) copies.fetch(tensor);
  });
  return {plan.backend(), plan.isa()};
}

template <class Args>
Ran plan_and_run(const Args& args, const Settings& settings) {
  const Problem problem = problem_of(args, settings);
  if (settings.options.backend == "cuda") {
    return plan_and_run_on_gpu(args, problem, *testkit::cuda_memory(0));
  }
  const Plan plan = make_plan(problem);
  const Buffer workspace(plan.workspace_bytes());
  msa::run(plan, args, {workspace.data(), plan.workspace_bytes()});
  return {plan.backend(), plan.isa()};
}

Ran compute(RunOp op, const Work& w, const Settings& settings) {
  const Batch& batch = w.lengths.batch;
  switch (op) {
    case RunOp::Dense:
      return plan_and_run(
          DenseAttentionArgs{
              .q = w.q, .k = w.k, .v = w.v, .batch = batch, .out = w.out.view, .lse = w.lse.view},
          settings);
    case RunOp::Scores:
      return plan_and_run(
          BlockScoresArgs{
              .index_q = w.index_q, .index_k = w.index_k, .batch = batch, .scores = w.scores.view},
          settings);
    case RunOp::Select:
      return plan_and_run(SelectBlocksArgs{.index_q = w.index_q,
                                           .index_k = w.index_k,
                                           .batch = batch,
                                           .block_ids = w.block_ids.view},
                          settings);
    case RunOp::Sparse:
      return plan_and_run(SparseAttentionArgs{.q = w.q,
                                              .k = w.k,
                                              .v = w.v,
                                              .block_ids = w.ids_in,
                                              .batch = batch,
                                              .out = w.out.view,
                                              .lse = w.lse.view},
                          settings);
    case RunOp::Msa:
      break;
  }
  return plan_and_run(MsaAttentionArgs{.q = w.q,
                                       .k = w.k,
                                       .v = w.v,
                                       .index_q = w.index_q,
                                       .index_k = w.index_k,
                                       .batch = batch,
                                       .out = w.out.view,
                                       .lse = w.lse.view,
                                       .block_ids = w.block_ids.view},
                      settings);
}

std::map<std::string, std::string> describe(const RunOptions& options, const Ran& ran) {
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

void write_outputs(const RunOptions& options, const Work& work, const Ran& ran) {
  std::vector<safetensors::View> views;
  const auto add = [&](const char* name, const OwnedTensor& tensor) {
    if (!tensor) return;
    const auto* shape = tensor.view.shape.data();
    views.push_back({name, tensor.view.dtype, {shape, shape + tensor.view.rank}, tensor.view.data});
  };
  add("out", work.out);
  add("lse", work.lse);
  add("block_ids", work.block_ids);
  add("block_scores", work.scores);
  safetensors::write(options.out, views, describe(options, ran));
}

RunOp parse_op(const std::string& name) {
  static const std::map<std::string, RunOp> ops{{"dense", RunOp::Dense},
                                                {"scores", RunOp::Scores},
                                                {"select", RunOp::Select},
                                                {"sparse", RunOp::Sparse},
                                                {"msa", RunOp::Msa}};
  return ops.at(name);
}

/// Options are at fault where the error names one; what remains is the file's.
bool blames_option(const Error& error) {
  constexpr std::array<std::string_view, 9> kOptions{"block_size",  "topk",          "local_blocks",
                                                     "init_blocks", "softmax_scale", "backend",
                                                     "isa",         "threads",       "options"};
  return std::any_of(kOptions.begin(), kOptions.end(), [&](std::string_view name) {
    return error.argument() == name || error.argument().ends_with("." + std::string(name));
  });
}

int run_file(RunOptions options) {
  require_backend(options.settings.options);
  options.settings.causal = !options.no_causal;
  if (options.scale_given) options.settings.softmax_scale = options.softmax_scale;
  const RunOp op = parse_op(options.op);
  Input input(options.in);
  Work work;
  read_work(input, op, options, work);
  make_outputs(op, options.settings, work);
  try {
    write_outputs(options, work, compute(op, work, options.settings));
  } catch (const Error& error) {
    const bool bad_argument = error.code() == ErrorCode::InvalidArgument && !blames_option(error);
    if (bad_argument || error.code() == ErrorCode::InvalidContent) {
      bad_input(options.in + ": " + error.what());
    }
    throw;
  }
  return kGood;
}

}  // namespace

void add_run(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("run", "Run one operation on the tensors of a safetensors file");
  auto options = std::make_shared<RunOptions>();
  Settings& s = options->settings;
  command->add_option("op", options->op, "dense, scores, select, sparse or msa")
      ->required()
      ->check(CLI::IsMember({"dense", "scores", "select", "sparse", "msa"}));
  command->add_option("in", options->in, "Input file")->required();
  command->add_option("out", options->out, "Output file; appears whole or not at all")->required();
  command->add_option("--block-size", s.block_size, "Tokens in a block")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20));
  CLI::Option* topk = command->add_option("--topk", s.topk, "Blocks kept")
                          ->capture_default_str()
                          ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20));
  command->add_option("--local-blocks", s.local_blocks, "Last visible blocks, always kept")
      ->capture_default_str();
  command->add_option("--init-blocks", s.init_blocks, "First visible blocks, always kept")
      ->capture_default_str();
  CLI::Option* scale =
      command->add_option("--softmax-scale", options->softmax_scale, "Default: 1 / sqrt(head dim)");
  command->add_flag("--no-causal", options->no_causal, "Every key is visible to every query");
  add_backend_options(*command, s.options);
  command->callback([&action, options, topk, scale] {
    options->topk_given = topk->count() > 0;
    options->scale_given = scale->count() > 0;
    action = [options] { return run_file(*options); };
  });
}

}  // namespace msa::cli
