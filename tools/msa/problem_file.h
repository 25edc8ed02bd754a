// SPDX-License-Identifier: MIT
// Problems in safetensors files, under the names of docs/formats.md: what `msa run` reads, `msa
// make` writes and `msa verify` compares.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cli.h"
#include "msa/error.h"
#include "safetensors.h"
#include "tensors.h"
#include "testkit/operands.h"

namespace msa::cli {

/// Whether files serve an operation of this name: dense, scores, select, sparse, msa.
bool is_file_op(std::string_view name);
/// The operation of such a name.
Op file_op(const std::string& name);

/// What files do not say.
struct FileOptions {
  std::string op;
  Settings settings;
  bool topk_given = false;
  bool no_causal = false;
  bool fast = false;
  bool scale_given = false;
  float softmax_scale = 0;
};

/// --block-size and what else Settings hold, the backend's options included. `finish` must run when
/// the command line has been understood.
class FileOptionSetters {
 public:
  FileOptionSetters(CLI::App& command, FileOptions& options);
  void finish(FileOptions& options) const;

 private:
  CLI::Option* topk_;
  CLI::Option* scale_;
};

/// Tensors of files, each read when it is first asked for. A name may stand in one file only.
class TensorFiles {
 public:
  /// Throws Failure for names that nobody knows; outputs are known too where `with_outputs` says
  /// so.
  TensorFiles(const std::vector<std::string>& paths, bool with_outputs);

  bool has(std::string_view name) const { return find(name).entry != nullptr; }
  /// A tensor that was not given where the files have none.
  Tensor optional(const std::string& name);
  Tensor required(const std::string& name, const std::string& op, int rank);
  void check_rank(const std::string& name, const Tensor& tensor, int rank) const;
  void check_int32(const std::string& name, const Tensor& tensor) const;
  /// The files' names, for messages.
  const std::string& paths() const { return paths_; }

 private:
  struct Found {
    const safetensors::File* file = nullptr;
    const safetensors::Entry* entry = nullptr;
  };
  Found find(std::string_view name) const;

  std::string paths_;
  std::deque<safetensors::File> files_;
  std::map<std::string, OwnedTensor> tensors_;
};

/// A problem as its files say. Not to be moved: the lengths of a single request lie in it.
struct FileProblem {
  FileProblem() = default;
  FileProblem(const FileProblem&) = delete;
  FileProblem& operator=(const FileProblem&) = delete;

  Op op = Op::MsaAttention;
  testkit::Operands operands{};
  std::array<std::int32_t, 2> one_cu{};
  std::array<std::int32_t, 1> one_k{};
};

/// The inputs of `options.op`. Takes the number of blocks kept from given ids.
void read_problem(TensorFiles& files, FileOptions& options, FileProblem& problem);

[[noreturn]] void bad_input(const std::string& message);

/// Whether an error is the options' fault and not the file's.
bool blames_option(const Error& error);

bool attends(Op op);
bool indexes(Op op);

}  // namespace msa::cli
