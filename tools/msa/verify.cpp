// SPDX-License-Identifier: MIT
// `msa verify`: cases against the oracle. A case that nobody serves is a rejection, which is fine
// unless the support table lists it; every failure leaves the line that repeats it.
#include <fmt/format.h>

#include <charconv>
#include <map>
#include <memory>
#include <optional>
#include <string_view>

#include "cli.h"
#include "problem_file.h"
#include "progress.h"
#include "testkit/case.h"
#include "testkit/cuda_memory.h"
#include "testkit/draw.h"
#include "testkit/support.h"
#include "testkit/verify.h"
#include "verify_file.h"

namespace msa::cli {
namespace {

struct VerifyCommand {
  std::vector<std::string> files;
  std::vector<std::string> lines;
  std::vector<std::string> support;  // FILE, or ISA=FILE
  std::string part;
  std::int64_t draw = 0;
  std::uint64_t seed = 1;
  std::string inside;
  bool keys = false;
  bool every_isa = false;
  int repeats = 2;
  int device = 0;
  Options under_test;
  /// Of `msa verify OP FILE...`.
  FileOptions of_files;
  /// Options of either form that were given.
  std::vector<std::string> case_options, file_options;
};

testkit::SupportTable read_support(const std::string& path) {
  try {
    return testkit::SupportTable::read(path);
  } catch (const testkit::CaseError& error) {
    throw Failure(kBadInput, error.what());
  }
}

/// What every instruction set serves: the tables that name it, else those that name none.
class Support {
 public:
  explicit Support(const VerifyCommand& command) {
    for (const std::string& text : command.support) {
      const std::size_t equals = text.find('=');
      const bool named = equals != text.npos;
      const std::string isa = named ? text.substr(0, equals) : "";
      if (!tables_.try_emplace(isa, read_support(named ? text.substr(equals + 1) : text)).second)
        throw Failure(kUsage, fmt::format("--support: '{}' is a second table for the same", text));
    }
    if (tables_.empty() && !command.inside.empty())
      tables_.emplace("", read_support(command.inside));
  }

  /// nullptr: nothing is promised.
  const testkit::SupportTable* of(const std::string& isa) const {
    auto found = tables_.find(isa);
    if (found == tables_.end()) found = tables_.find("");
    return found == tables_.end() ? nullptr : &found->second;
  }

 private:
  std::map<std::string, testkit::SupportTable> tables_;
};

/// Legal cases of the seed, inside the table where one is given.
std::vector<testkit::Case> draw_all(const VerifyCommand& command) {
  std::optional<testkit::SupportTable> table;
  if (!command.inside.empty()) table = read_support(command.inside);
  if (command.draw == 0 && table) throw Failure(kUsage, "--inside: only with --draw");
  const testkit::DrawOptions options{.faults = false};
  std::vector<testkit::Case> cases;
  for (std::int64_t n = 0; n < command.draw; ++n) {
    testkit::Choices choices(command.seed, static_cast<std::uint64_t>(n));
    cases.push_back(table ? testkit::draw_case_inside(choices, *table, options)
                          : testkit::draw_case(choices, options));
  }
  return cases;
}

std::vector<testkit::Case> read_all(const VerifyCommand& command) {
  std::vector<testkit::Case> cases;
  const auto add = [&](std::vector<testkit::Case> more) {
    cases.insert(cases.end(), std::make_move_iterator(more.begin()),
                 std::make_move_iterator(more.end()));
  };
  try {
    for (const std::string& line : command.lines) add(testkit::expand_cases(line));
  } catch (const testkit::CaseError& error) {
    throw Failure(kUsage, std::string("--case: ") + error.what());
  }
  try {
    for (const std::string& file : command.files) add(testkit::read_cases(file));
  } catch (const std::exception& error) {
    throw Failure(kBadInput, error.what());
  }
  add(draw_all(command));
  if (cases.empty()) throw Failure(kUsage, "expected case files, --case or --draw, got no case");
  return cases;
}

/// Every `of`-th case, from case `index` on.
struct Part {
  std::size_t index = 0;
  std::size_t of = 1;
};

Part read_part(std::string_view text) {
  if (text.empty()) return {};
  const std::size_t slash = text.find('/');
  const auto number = [](std::string_view digits) -> std::size_t {
    std::size_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc() && end == digits.data() + digits.size() ? value : 0;
  };
  const std::size_t which = number(text.substr(0, slash));
  const std::size_t of = slash == text.npos ? 0 : number(text.substr(slash + 1));
  if (which == 0 || which > of)
    throw Failure(kUsage, fmt::format("--part: expected I/N with I from 1 to N, got '{}'", text));
  return {which - 1, of};
}

/// The first word is an operation: the others are files of tensors.
int verify_tensors(const VerifyCommand& command) {
  if (!command.case_options.empty()) {
    throw Failure(kUsage,
                  fmt::format("{}: not with the tensors of files", command.case_options.front()));
  }
  FileOptions options = command.of_files;
  options.op = command.files.front();
  if (command.files.size() < 2) {
    throw Failure(kUsage, fmt::format("expected files behind '{}', got none", options.op));
  }
  return verify_files(options, {command.files.begin() + 1, command.files.end()});
}

/// The one that the options name, or all that the machine has.
std::vector<std::string> isas_under_test(const VerifyCommand& command) {
  if (!command.every_isa) return {command.under_test.isa};
  const std::string& backend = command.under_test.backend;
  if ((backend != "cpu" && backend != "cuda") || !command.under_test.isa.empty())
    throw Failure(kUsage, "--every-isa: expected --backend cpu or cuda, and no --isa");
  std::vector<std::string> names;
  for (const IsaInfo& isa : testkit::isas_of(backend)) {
    if (isa.available) names.push_back(isa.name);
  }
  return names;
}

int verify(const VerifyCommand& command) {
  if (command.keys) {
    fmt::print("{}", testkit::case_keys());
    return kGood;
  }
  if (!command.files.empty() && is_file_op(command.files.front())) return verify_tensors(command);
  if (!command.file_options.empty()) {
    throw Failure(kUsage, fmt::format("{}: only with an operation and the tensors of files",
                                      command.file_options.front()));
  }
  require_backend(command.under_test);
  const Part part = read_part(command.part);
  const std::vector<testkit::Case> cases = read_all(command);
  const Support support(command);
  std::unique_ptr<testkit::MemorySpace> gpu;
  if (command.under_test.backend == "cuda") gpu = testkit::cuda_memory(command.device);
  const std::vector<std::string> isas = isas_under_test(command);
  testkit::VerifyOptions options{
      .under_test = command.under_test, .space = gpu.get(), .repeats = command.repeats};
  Progress progress;
  testkit::Totals totals;
  std::size_t run = 0;
  for (std::size_t at = part.index; at < cases.size(); at += part.of) {
    const testkit::Case& spec = cases[at];
    progress.bar(static_cast<double>(at) / static_cast<double>(cases.size()),
                 testkit::to_line(spec));
    testkit::CaseMemory memory;  // what holds for every instruction set
    options.memory = &memory;
    for (const std::string& isa : isas) {
      options.under_test.isa = isa;
      ++run;
      testkit::Outcome outcome = testkit::verify(spec, options);
      testkit::count(outcome, spec, support.of(isa), totals);
      if (outcome.result != testkit::Result::Failed) continue;
      progress.clear();
      fmt::print(stderr, "FAILED: {}\n  {}\n", outcome.reason, outcome.repro);
    }
  }
  progress.clear();
  fmt::print("run\t{}\npassed\t{}\nfailed\t{}\nrejected\t{}\n", run, totals.passed, totals.failed,
             totals.rejected);
  return totals.failed == 0 ? kGood : kCheckFailed;
}

}  // namespace

void add_verify(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "verify", "Compare a backend on cases, or outputs in files, with the oracle");
  auto options = std::make_shared<VerifyCommand>();
  command->add_option("files", options->files,
                      "Files of cases, one a line; or dense, scores, select, sparse or msa and the "
                      "safetensors files that hold its inputs and outputs");
  const std::size_t of_both = command->get_options().size();
  command->add_option("--case", options->lines, "A case in the case language; may be repeated");
  command
      ->add_option("--support", options->support,
                   "Support table of the backend, or ISA=FILE for one of its instruction sets; may "
                   "be repeated: a rejection inside it fails")
      ->allow_extra_args(false);  // files of cases may stand behind it
  command
      ->add_option("--repeats", options->repeats, "Runs of each case: all must give the same bits")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  command->add_option("--device", options->device, "GPU of the cuda backend")
      ->capture_default_str()
      ->check(CLI::Range(0, 1023));
  command->add_option("--part", options->part,
                      "I/N: every N-th case from the I-th on, to share a run among processes");
  command->add_flag("--every-isa", options->every_isa,
                    "Each case on every instruction set of this machine; the oracle answers once");
  command->add_option("--draw", options->draw, "So many cases at random, the same for one seed")
      ->check(CLI::Range(1, 10000000));
  command->add_option("--seed", options->seed, "Of --draw")->capture_default_str();
  command->add_option("--inside", options->inside,
                      "Support table that --draw stays inside; also --support where that is not "
                      "given");
  command->add_flag("--keys", options->keys,
                    "Show the keys of the case language and verify nothing");
  add_backend_options(*command, options->under_test);
  const std::size_t of_cases = command->get_options().size();
  const FileOptionSetters setters(*command, options->of_files);
  command->callback([&action, command, options, setters, of_both, of_cases] {
    setters.finish(options->of_files);
    const std::vector<CLI::Option*> all = command->get_options();
    for (std::size_t i = of_both; i < all.size(); ++i) {
      if (all[i]->count() == 0) continue;
      (i < of_cases ? options->case_options : options->file_options).push_back(all[i]->get_name());
    }
    action = [options] { return verify(*options); };
  });
}

}  // namespace msa::cli
