// SPDX-License-Identifier: MIT
// Reading problems; see problem_file.h. Shapes that outputs follow from are checked here, the rest
// by the library.
#include "problem_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

namespace msa::cli {
namespace {

using safetensors::printable;

const std::map<std::string, Op, std::less<>>& file_ops() {
  static const std::map<std::string, Op, std::less<>> ops{{"dense", Op::DenseAttention},
                                                          {"scores", Op::BlockScores},
                                                          {"select", Op::SelectBlocks},
                                                          {"sparse", Op::SparseAttention},
                                                          {"msa", Op::MsaAttention}};
  return ops;
}

constexpr std::array<const char*, 21> kInputs{"q",
                                              "k",
                                              "v",
                                              "k_cache",
                                              "v_cache",
                                              "k_scale",
                                              "v_scale",
                                              "index_q",
                                              "index_k",
                                              "index_k_cache",
                                              "index_k_scale",
                                              "index_k8",
                                              "index_k8_bounds",
                                              "page_table",
                                              "cu_seqlens_q",
                                              "seqlens_k",
                                              "cu_seqlens_k",
                                              "q_offsets",
                                              "key_offsets",
                                              "total_seqlens_k",
                                              "block_ids"};
constexpr std::array<const char*, 3> kOutputs{"out", "lse", "block_scores"};

/// Keys under `name`, ragged [N, H, D], or under `name`_cache, paged [P, S, H, D].
Tensor read_keys(TensorFiles& files, const std::string& op, const std::string& name, bool paged) {
  const std::string cache = name + "_cache";
  if (files.has(name) && files.has(cache)) {
    bad_input(
        fmt::format("{}: expected either '{}' or '{}', got both", files.paths(), name, cache));
  }
  if (paged != files.has(cache) && (files.has(name) || files.has(cache))) {
    bad_input(
        fmt::format("{}: expected all keys ragged or all in caches, got '{}' beside the others",
                    files.paths(), paged ? name : cache));
  }
  return files.required(paged ? cache : name, op, paged ? 4 : 3);
}

std::int32_t as_int32(const TensorFiles& files, const std::string& name, std::int64_t value) {
  if (value > INT32_MAX) {
    bad_input(fmt::format("{}: expected at most 2^31 - 1 rows of '{}', got {}", files.paths(), name,
                          value));
  }
  return static_cast<std::int32_t>(value);
}

/// Each of seqlens_k against the rows there are: output shapes follow from them.
void check_key_lengths(const TensorFiles& files, const Tensor& seqlens_k, std::int64_t rows) {
  const std::span lengths(static_cast<const std::int32_t*>(seqlens_k.data),
                          static_cast<std::size_t>(seqlens_k.shape[0]));
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    if (lengths[b] < 0 || lengths[b] > rows) {
      bad_input(
          fmt::format("{}: tensor 'seqlens_k': expected lengths of 0 to {}, got {} for request {}",
                      files.paths(), rows, lengths[b], b));
    }
  }
}

void read_lengths(TensorFiles& files, const std::string& op, const Tensor& queries,
                  const Tensor& keys, bool paged, FileProblem& problem) {
  Batch& batch = problem.operands.batch;
  const bool given = files.has("cu_seqlens_q") || files.has("seqlens_k");
  if (given || paged) {
    batch.cu_seqlens_q = files.required("cu_seqlens_q", op, 1);
    batch.seqlens_k = files.required("seqlens_k", op, 1);
  } else {
    problem.one_cu = {0, as_int32(files, "q", queries.shape[0])};
    problem.one_k = {as_int32(files, "k", keys.shape[0])};
    batch.cu_seqlens_q = make_tensor(problem.one_cu.data(), DType::I32, {2});
    batch.seqlens_k = make_tensor(problem.one_k.data(), DType::I32, {1});
  }
  if (paged) batch.page_table = files.required("page_table", op, 2);
  if (!paged) batch.cu_seqlens_k = files.optional("cu_seqlens_k");
  batch.q_offsets = files.optional("q_offsets");
  batch.key_offsets = files.optional("key_offsets");
  batch.total_seqlens_k = files.optional("total_seqlens_k");
  files.check_int32("cu_seqlens_q", batch.cu_seqlens_q);
  files.check_int32("seqlens_k", batch.seqlens_k);
  files.check_int32("cu_seqlens_k", batch.cu_seqlens_k);
  files.check_int32("q_offsets", batch.q_offsets);
  files.check_int32("key_offsets", batch.key_offsets);
  files.check_int32("total_seqlens_k", batch.total_seqlens_k);
  std::int64_t rows = keys.shape[0];
  if (paged && __builtin_mul_overflow(batch.page_table.shape[1], keys.shape[1], &rows)) {
    bad_input(fmt::format("{}: tensor 'page_table': {} pages of {} tokens overflow", files.paths(),
                          batch.page_table.shape[1], keys.shape[1]));
  }
  check_key_lengths(files, batch.seqlens_k, rows);
}

std::string joined(const std::vector<std::string>& paths) {
  return fmt::format("{}", fmt::join(paths, ", "));
}

bool is_known(const std::string& name, bool with_outputs) {
  if (std::find(kInputs.begin(), kInputs.end(), name) != kInputs.end()) return true;
  return with_outputs && std::find(kOutputs.begin(), kOutputs.end(), name) != kOutputs.end();
}

}  // namespace

bool is_file_op(std::string_view name) { return file_ops().find(name) != file_ops().end(); }

Op file_op(const std::string& name) { return file_ops().at(name); }

void bad_input(const std::string& message) { throw Failure(kBadInput, message); }

bool attends(Op op) {
  return op == Op::DenseAttention || op == Op::SparseAttention || op == Op::MsaAttention;
}

bool indexes(Op op) {
  return op == Op::BlockScores || op == Op::SelectBlocks || op == Op::MsaAttention;
}

bool blames_option(const Error& error) {
  constexpr std::array<std::string_view, 10> kOptions{
      "block_size", "topk",    "local_blocks", "init_blocks", "softmax_scale",
      "precision",  "backend", "isa",          "threads",     "options"};
  return std::any_of(kOptions.begin(), kOptions.end(), [&](std::string_view name) {
    return error.argument() == name || error.argument().ends_with("." + std::string(name));
  });
}

FileOptionSetters::FileOptionSetters(CLI::App& command, FileOptions& options) {
  Settings& s = options.settings;
  command.add_option("--block-size", s.block_size, "Tokens in a block")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20));
  topk_ = command.add_option("--topk", s.topk, "Blocks kept")
              ->capture_default_str()
              ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20));
  command.add_option("--local-blocks", s.local_blocks, "Last visible blocks, always kept")
      ->capture_default_str();
  command.add_option("--init-blocks", s.init_blocks, "First visible blocks, always kept")
      ->capture_default_str();
  scale_ =
      command.add_option("--softmax-scale", options.softmax_scale, "Default: 1 / sqrt(head dim)");
  command.add_flag("--no-causal", options.no_causal, "Every key is visible to every query");
  command.add_flag("--filter-rotated", s.filter_rotated, "index_k8 holds codes of rotated keys");
  command.add_flag("--fast", options.fast, "Selections go by index_k8 alone");
}

void FileOptionSetters::finish(FileOptions& options) const {
  options.topk_given = topk_->count() > 0;
  options.scale_given = scale_->count() > 0;
  options.settings.causal = !options.no_causal;
  if (options.fast) options.settings.precision = Precision::Fast;
  if (options.scale_given) options.settings.softmax_scale = options.softmax_scale;
}

TensorFiles::TensorFiles(const std::vector<std::string>& paths, bool with_outputs)
    : paths_(joined(paths)) {
  for (const std::string& path : paths) {
    const safetensors::File& file = files_.emplace_back(path);
    for (const safetensors::Entry& entry : file.header().entries) {
      if (!is_known(entry.name, with_outputs)) {
        bad_input(fmt::format("{}: tensor {} is not known; known are {}{}{}", path,
                              printable(entry.name), fmt::join(kInputs, ", "),
                              with_outputs ? ", " : "",
                              with_outputs ? fmt::format("{}", fmt::join(kOutputs, ", ")) : ""));
      }
      for (const safetensors::File& earlier : files_) {
        if (&earlier == &file || earlier.find(entry.name) == nullptr) continue;
        bad_input(fmt::format("{}: tensor {} stands in {} too", path, printable(entry.name),
                              earlier.path()));
      }
    }
  }
}

TensorFiles::Found TensorFiles::find(std::string_view name) const {
  for (const safetensors::File& file : files_) {
    if (const safetensors::Entry* entry = file.find(name)) return {&file, entry};
  }
  return {};
}

Tensor TensorFiles::optional(const std::string& name) {
  const Found found = find(name);
  if (found.entry == nullptr) return {};
  const safetensors::Entry& entry = *found.entry;
  if (entry.shape.empty() || entry.shape.size() > msa::kMaxRank) {
    bad_input(fmt::format("{}: tensor {}: expected a rank of 1 to {}, got {}", found.file->path(),
                          printable(name), msa::kMaxRank, entry.shape.size()));
  }
  OwnedTensor& tensor = tensors_[name];
  if (!tensor) {
    tensor = OwnedTensor(entry.dtype, entry.shape);
    found.file->read(entry, tensor.memory.data());
  }
  return tensor.view;
}

Tensor TensorFiles::required(const std::string& name, const std::string& op, int rank) {
  const Tensor tensor = optional(name);
  if (!tensor) bad_input(fmt::format("{}: {} needs the tensor '{}'", paths_, op, name));
  check_rank(name, tensor, rank);
  return tensor;
}

void TensorFiles::check_rank(const std::string& name, const Tensor& tensor, int rank) const {
  if (!tensor || tensor.rank == rank) return;
  bad_input(fmt::format("{}: tensor '{}': expected a rank of {}, got {}", paths_, name, rank,
                        to_string(tensor)));
}

void TensorFiles::check_int32(const std::string& name, const Tensor& tensor) const {
  if (!tensor || tensor.dtype == DType::I32) return;
  bad_input(
      fmt::format("{}: tensor '{}': expected dtype i32, got {}", paths_, name, to_string(tensor)));
}

void read_problem(TensorFiles& files, FileOptions& options, FileProblem& problem) {
  const Op op = file_op(options.op);
  problem.op = op;
  testkit::Operands& o = problem.operands;
  const bool paged = files.has(attends(op) ? "k_cache" : "index_k_cache");
  if (attends(op)) {
    o.q = files.required("q", options.op, 3);
    o.k = read_keys(files, options.op, "k", paged);
    o.v = read_keys(files, options.op, "v", paged);
    o.k_scale = files.optional("k_scale");
    o.v_scale = files.optional("v_scale");
  }
  if (indexes(op)) {
    o.index_q = files.required("index_q", options.op, 3);
    o.index_k = read_keys(files, options.op, "index_k", paged);
    o.index_k_scale = files.optional("index_k_scale");
    if (op != Op::BlockScores) {
      o.index_k8 = files.optional("index_k8");
      o.index_k8_bounds = files.optional("index_k8_bounds");
    }
  }
  if (op == Op::SparseAttention) {
    o.block_ids_in = files.required("block_ids", options.op, 3);
    const std::int64_t width = o.block_ids_in.shape[2];
    if (options.topk_given && options.settings.topk != width) {
      throw Failure(kUsage, fmt::format("--topk: expected {}, the width of block_ids, got {}",
                                        width, options.settings.topk));
    }
    options.settings.topk = width;
  }
  read_lengths(files, options.op, attends(op) ? o.q : o.index_q, attends(op) ? o.k : o.index_k,
               paged, problem);
}

}  // namespace msa::cli
