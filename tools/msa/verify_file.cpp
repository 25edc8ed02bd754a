// SPDX-License-Identifier: MIT
// `msa verify OP FILE...`: outputs that somebody computed, in the same file as their inputs or in
// another, against the oracle.
#include <fmt/format.h>

#include <deque>

#include "msa/attention.h"
#include "problem_file.h"
#include "testkit/compare.h"
#include "verify_file.h"

namespace msa::cli {
namespace {

/// The outputs that the operation has and the files hold.
void read_outputs(TensorFiles& files, const FileOptions& options, FileProblem& problem) {
  testkit::Operands& o = problem.operands;
  const Op op = problem.op;
  if (attends(op)) {
    o.out = files.required("out", options.op, 3);
    o.lse = files.optional("lse");
    files.check_rank("lse", o.lse, 2);
  }
  if (op == Op::SelectBlocks) o.block_ids = files.required("block_ids", options.op, 3);
  if (op == Op::MsaAttention) o.block_ids = files.optional("block_ids");
  files.check_rank("block_ids", o.block_ids, 3);
  if (op == Op::BlockScores) o.scores = files.required("block_scores", options.op, 3);
}

/// One call of the library with outputs of its own. It says what is wrong with the files by their
/// tensors' names; the oracle and the comparison believe what they read.
void require_legal(const FileProblem& problem, const Settings& settings) {
  testkit::Operands scratch = problem.operands;
  std::deque<OwnedTensor> memory;
  for (Tensor* t : {&scratch.out, &scratch.lse, &scratch.block_ids, &scratch.scores}) {
    if (!*t) continue;
    *t = memory
             .emplace_back(t->dtype,
                           std::vector<std::int64_t>(t->shape.begin(), t->shape.begin() + t->rank))
             .view;
  }
  testkit::run_once(problem.op, scratch, settings);
}

}  // namespace

int verify_files(FileOptions options, const std::vector<std::string>& paths) {
  TensorFiles files(paths, true);
  FileProblem problem;
  read_problem(files, options, problem);
  read_outputs(files, options, problem);
  if (problem.operands.block_ids && !options.topk_given) {
    options.settings.topk = problem.operands.block_ids.shape[2];
  }
  Problem planned;
  try {
    require_legal(problem, options.settings);
    planned = testkit::problem_of(problem.op, problem.operands, options.settings);
  } catch (const Error& error) {
    if (blames_option(error)) throw;
    bad_input(files.paths() + ": " + error.what());
  }
  const testkit::Report report = testkit::compare(planned, problem.operands);
  fmt::print(
      "rows\t{}\ncompared\t{}\nlargest_error\t{:.4g}\nshare_of_tolerance\t{:.4g}\n"
      "worst_place\t{}\n",
      report.rows, report.rows_compared, report.worst_error, report.worst_share,
      report.worst_place);
  if (report.ok) return kGood;
  fmt::print(stderr, "FAILED: {}\n", report.what);
  return kCheckFailed;
}

}  // namespace msa::cli
