// SPDX-License-Identifier: MIT
// `msa make CASE OUT`: the tensors of a case in a file that `msa run` reads, and the command line
// that runs it.
#include <fmt/format.h>

#include <cstring>
#include <deque>

#include "cli.h"
#include "problem_file.h"
#include "testkit/case.h"
#include "testkit/generate.h"
#include "testkit/requests.h"

namespace msa::cli {
namespace {

struct MakeCommand {
  std::string line;
  std::string out;
};

testkit::Case read_case(const std::string& line) {
  testkit::Case spec;
  try {
    spec = testkit::parse_case(line);
  } catch (const testkit::CaseError& error) {
    throw Failure(kUsage, error.what());
  }
  const std::string op = testkit::short_name(spec.op);
  if (!is_file_op(op)) {
    throw Failure(kUsage, "op: expected dense, scores, select, sparse or msa, got " + op);
  }
  if (spec.kv_format().storage == DType::E2M1) {
    throw Failure(kUsage, "kv: expected a format that files hold, got " + to_string(*spec.kv));
  }
  if (spec.index_k_format().storage == DType::E2M1) {
    throw Failure(kUsage,
                  "index_k: expected a format that files hold, got " + to_string(*spec.index_k));
  }
  if (spec.corrupt != testkit::Corrupt::None) {
    throw Failure(kUsage, "corrupt: expected none, got " + testkit::case_value(spec, "corrupt"));
  }
  return spec;
}

/// Row-major, whatever the strides of the case's tensor are.
OwnedTensor dense_copy(const Tensor& tensor) {
  OwnedTensor copy(tensor.dtype, {tensor.shape.begin(), tensor.shape.begin() + tensor.rank});
  std::array<std::int64_t, kMaxRank> shape{1, 1, 1, 1};
  std::copy_n(tensor.shape.begin(), tensor.rank, shape.begin());
  const auto item = static_cast<std::size_t>(size_in_bytes(tensor.dtype, 1));
  auto* to = static_cast<std::byte*>(copy.memory.data());
  for (std::int64_t a = 0; a < shape[0]; ++a) {
    for (std::int64_t b = 0; b < shape[1]; ++b) {
      for (std::int64_t c = 0; c < shape[2]; ++c) {
        for (std::int64_t d = 0; d < shape[3]; ++d, to += item) {
          std::memcpy(to, testkit::address(tensor, a, b, c, d), item);
        }
      }
    }
  }
  return copy;
}

class Writer {
 public:
  void add(const std::string& name, const Tensor& tensor) {
    if (!tensor) return;
    const OwnedTensor& copy = copies_.emplace_back(dense_copy(tensor));
    const auto* shape = copy.view.shape.data();
    views_.push_back({name, tensor.dtype, {shape, shape + tensor.rank}, copy.view.data});
  }
  void write(const std::string& path, const std::string& line) const {
    safetensors::write(path, views_, {{"msa.case", line}});
  }

 private:
  std::deque<OwnedTensor> copies_;
  std::vector<safetensors::View> views_;
};

std::string run_command(const testkit::Case& spec, const std::string& path) {
  std::string text = fmt::format(
      "msa run {} {} result.safetensors --block-size {} --topk {} --local-blocks {} "
      "--init-blocks {}",
      testkit::short_name(spec.op), path, spec.block_size, spec.topk, spec.local_blocks,
      spec.init_blocks);
  if (spec.softmax_scale) {
    text += " --softmax-scale " + testkit::case_value(spec, "scale");
  }
  if (!spec.causal) text += " --no-causal";
  if (spec.filter && spec.rotated) text += " --filter-rotated";
  if (spec.precision == Precision::Fast) text += " --fast";
  return text;
}

int make(const MakeCommand& command) {
  const testkit::Case spec = read_case(command.line);
  std::optional<testkit::Data> data;
  try {
    data.emplace(spec);
  } catch (const testkit::CaseError& error) {
    throw Failure(kUsage, error.what());
  }
  const testkit::Operands& o = data->operands();
  const std::string cache = spec.page_size > 0 ? "_cache" : "";
  Writer writer;
  writer.add("q", o.q);
  writer.add("k" + cache, o.k);
  writer.add("v" + cache, o.v);
  writer.add("k_scale", o.k_scale);
  writer.add("v_scale", o.v_scale);
  writer.add("index_q", o.index_q);
  writer.add("index_k" + cache, o.index_k);
  writer.add("index_k_scale", o.index_k_scale);
  writer.add("index_k8", o.index_k8);
  writer.add("index_k8_bounds", o.index_k8_bounds);
  writer.add("block_ids", o.block_ids_in);
  writer.add("page_table", o.batch.page_table);
  writer.add("cu_seqlens_q", o.batch.cu_seqlens_q);
  writer.add("seqlens_k", o.batch.seqlens_k);
  writer.add("cu_seqlens_k", o.batch.cu_seqlens_k);
  writer.add("q_offsets", o.batch.q_offsets);
  writer.add("key_offsets", o.batch.key_offsets);
  writer.add("total_seqlens_k", o.batch.total_seqlens_k);
  writer.write(command.out, testkit::to_line(spec));
  fmt::print("{}\n", run_command(spec, command.out));
  return kGood;
}

}  // namespace

void add_make(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "make", "Write the tensors of a case to a file that run reads, and print the command");
  auto options = std::make_shared<MakeCommand>();
  command->add_option("case", options->line, "One case in the case language; see verify --keys")
      ->required();
  command->add_option("out", options->out, "Output file; appears whole or not at all")->required();
  command->callback([&action, options] { action = [options] { return make(*options); }; });
}

}  // namespace msa::cli
