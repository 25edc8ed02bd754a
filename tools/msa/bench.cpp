// SPDX-License-Identifier: MIT
// `msa bench`: makes the data of a row, runs it once, compares that very run with the oracle, then
// times it. Peaks of the machine are measured between the timings of the same process.
#include <fmt/format.h>
#include <fnmatch.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <memory>
#include <optional>

#include "bench_cuda.h"
#include "bench_rows.h"
#include "cli.h"
#include "msa/msa.h"
#include "pending_file.h"
#include "progress.h"
#include "results.h"
#include "tensors.h"
#include "testkit/block_lists.h"
#include "testkit/compare.h"
#include "testkit/generate.h"
#include "testkit/requests.h"
#include "testkit/verify.h"
#include "timing.h"

namespace msa::cli {
namespace {

struct BenchOptions {
  std::vector<std::string> filters;
  std::vector<std::string> lines;
  bool list = false;
  bool roofline = false;
  bool no_peer = false;
  bool graph = false;
  bool on_demand = false;
  TimingRule rule;
  std::string json;
  std::string baseline;
  double tolerance = 0.05;
  double gemm_flops = 0;
  double read_rate = 0;
  int device = 0;
  Options under_test;
  std::string command;
};

/// A case with its data, its plan and its workspace, ready to run.
class Call {
 public:
  Call(const std::string& line, const Options& options, bool poison = false)
      : spec_(testkit::parse_case(line)),
        data_(spec_),
        plan_(make_plan(problem_with(options))),
        workspace_(plan_.workspace_bytes()),
        operands_(data_.prepare()) {
    if (poison) spoil_first_value();
  }

  void run() { testkit::run(plan_, operands_, {workspace_.data(), plan_.workspace_bytes()}); }

  testkit::Report compare() const {
    return testkit::compare(plan_.problem(), data_.operands(),
                            {.exact_scores = testkit::has_exact_scores(spec_), .seed = spec_.seed});
  }

  const testkit::Case& spec() const { return spec_; }
  const Plan& plan() const { return plan_; }
  const testkit::Operands& operands() const { return data_.operands(); }

 private:
  /// A NaN in the first value of the first key of every head.
  void spoil_first_value() const {
    const Tensor& v = operands_.v;
    const std::int64_t heads = v.shape[v.rank - 2];
    for (std::int64_t head = 0; head < heads; ++head) {
      std::byte* value =
          v.rank == 3 ? testkit::address(v, 0, head) : testkit::address(v, 0, 0, head);
      std::memset(value, 0xff, static_cast<std::size_t>(size_in_bytes(v.dtype, 1)));
    }
  }

  Problem problem_with(const Options& options) const {
    Problem problem = data_.problem();
    const bool invariant = problem.options.batch_invariant;
    problem.options = options;
    problem.options.batch_invariant = invariant;
    return problem;
  }

  testkit::Case spec_;
  testkit::Data data_;
  Plan plan_;
  Buffer workspace_;
  testkit::Operands operands_;
};

class Bench {
 public:
  explicit Bench(const BenchOptions& options) : options_(options) {
    threads_ = options.under_test.threads > 0 ? options.under_test.threads : build_info().threads;
    if (options.roofline) roofline_.emplace(threads_);
  }

  /// Row `index` of `count` comes next: the progress line says how far the run is.
  void begin(std::size_t index, std::size_t count) {
    if (index == 0) begin_ = std::chrono::steady_clock::now();
    where_ = count > 1 ? fmt::format("[{}/{}{}] ", index + 1, count, to_go(index, count)) : "";
  }

  /// Measures one row. False: its output was wrong, and nothing was timed.
  bool measure(const BenchRow& named) {
    if (measures_on_gpu() && options_.under_test.backend == "cuda") {
      results_.gpu = gpu_name(options_.device);
      return measure_on_gpu(named,
                            {.under_test = options_.under_test,
                             .rule = options_.rule,
                             .device = options_.device,
                             .peers = !options_.no_peer,
                             .say = [&](const std::string& text) { show(text); }},
                            results_.rows);
    }
    Options under_test = options_.under_test;
    if (!named.isa.empty()) under_test.isa = named.isa;
    say(named, "making data");
    Call call(named.line, under_test, named.poison);
    std::optional<Call> peer;
    if (!named.peer_line.empty() && !options_.no_peer) {
      Options of_peer = under_test;
      if (!named.peer_isa.empty()) of_peer.isa = named.peer_isa;
      peer.emplace(named.peer_line, of_peer);
    }
    Row row;
    row.id = named.id;
    row.what = named.what;
    row.spec = call.spec();
    row.backend = call.plan().backend();
    row.isa = call.plan().isa();
    row.threads = threads_;
    if (!first_run(named, call, row, row.seconds)) return false;
    if (peer) {
      row.peer = named.peer.empty() ? "own dense attention" : named.peer;
      if (!first_run(named, *peer, row, row.peer_seconds)) return false;
      if (may_lose_ids(row.spec, peer->spec()))
        row.recall = recall_of(peer->operands().block_ids, call.operands().block_ids);
    }
    row.verified = true;
    time_row(named, call, peer ? &*peer : nullptr, row);
    describe_work(named, call, row);
    results_.rows.push_back(std::move(row));
    return true;
  }

  /// One row whose runs another program asks for, one for each line on stdin: so that it can time
  /// its own between ours.
  bool serve(const BenchRow& named) {
    Call call(named.line, options_.under_test);
    Row row;
    if (!first_run(named, call, row, row.seconds)) return false;
    progress_.clear();
    fmt::print("ready\t{}\t{}\n", call.plan().backend(), call.plan().isa());
    std::fflush(stdout);
    for (std::string line; std::getline(std::cin, line);) {
      fmt::print("{:.9f}\n", timer_.seconds([&] { call.run(); }));
      std::fflush(stdout);
    }
    return true;
  }

  /// Floors follow from the arithmetic peaks of the whole run and each row's own read rate.
  const Results& finish() {
    results_.command = options_.command;
    results_.threads = threads_;
    if (!results_.rows.empty()) results_.isa = results_.rows.front().isa;
    if (roofline_) results_.peaks = roofline_->peaks();
    if (!results_.gpu.empty())
      results_.peaks = {.bf16_flops = options_.gemm_flops, .read_bytes_per_s = options_.read_rate};
    for (Row& row : results_.rows) {
      if (!row.seconds.empty() && row.verified) add_floor(row, results_.peaks);
    }
    progress_.clear();
    return results_;
  }

 private:
  void say(const BenchRow& row, const std::string& text) { show(row.id + ": " + text); }
  void show(const std::string& text) { progress_.say(text.empty() ? text : where_ + text); }

  /// As long for a row as for those before it, on average; unknown before the second.
  std::string to_go(std::size_t done, std::size_t count) const {
    if (done == 0) return "";
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin_;
    const double left =
        took.count() * static_cast<double>(count - done) / static_cast<double>(done);
    return left < 90 ? fmt::format(", about {:.0f} s to go", left)
                     : fmt::format(", about {:.0f} min to go", left / 60);
  }

  /// One run, compared with the oracle. It is a warm-up, unless it took so long that no other will
  /// follow.
  bool first_run(const BenchRow& named, Call& call, Row& row, std::vector<double>& seconds) {
    say(named, "first run");
    roofline_round();
    double took = 0;
    const auto run = [&] { took = timer_.seconds([&] { call.run(); }); };
    if (named.measure_memory) {
      const std::int64_t grown = resident_growth(run);
      row.bytes = static_cast<double>(
          std::max<std::int64_t>(grown, static_cast<std::int64_t>(call.plan().workspace_bytes())));
    } else {
      run();
    }
    if (took >= options_.rule.max_time) seconds.push_back(took);
    say(named, "comparing with the oracle");
    const testkit::Report report = call.compare();
    if (report.ok) return true;
    progress_.clear();
    fmt::print(stderr, "msa: {}: wrong output, not timed: {}\n{}\n", named.id, report.what,
               testkit::repro_command(call.spec(), call.plan().problem().options));
    return false;
  }

  /// Ours, theirs, ours, theirs, with a round of the roofline after every fifth of a second.
  void time_row(const BenchRow& named, Call& call, Call* peer, Row& row) {
    const TimingRule& rule = options_.rule;
    const std::size_t first_round = roofline_ ? roofline_->rounds() : 0;
    double since_round = 0;
    const auto time_once = [&](Call& which, std::vector<double>& seconds) {
      if (rule.enough(seconds)) return;
      seconds.push_back(timer_.seconds([&] { which.run(); }));
      since_round += seconds.back();
      if (since_round < 0.2) return;
      roofline_round();
      since_round = 0;
    };
    while (!rule.enough(row.seconds) || (peer != nullptr && !rule.enough(row.peer_seconds))) {
      if (row.seconds.empty() || row.seconds.back() > 0.05) {
        say(named, fmt::format("run {}", row.seconds.size() + 1));
      }
      time_once(call, row.seconds);
      if (peer != nullptr) time_once(*peer, row.peer_seconds);
    }
    roofline_round();
    if (roofline_) row.read_rate = roofline_->read_rate(first_round);
  }

  void describe_work(const BenchRow& named, const Call& call, Row& row) {
    const testkit::Operands& operands = call.operands();
    row.work = useful_work(call.plan().problem(), operands);
    if (row.spec.regime != testkit::Regime::Drift || named.measure_memory) return;
    const Tensor& ids = operands.block_ids ? operands.block_ids : operands.block_ids_in;
    const bool groups = std::any_of(row.spec.lengths.begin(), row.spec.lengths.end(),
                                    [](const testkit::Lengths& r) { return r.seqlen_q >= 8; });
    if (ids && groups) row.blocks_per_8 = testkit::blocks_per_8(ids, operands.batch);
  }

  void roofline_round() {
    if (roofline_) roofline_->round();
  }

  const BenchOptions& options_;
  int threads_ = 1;
  HostTimer timer_;
  std::optional<Roofline> roofline_;
  Progress progress_;
  std::string where_{};
  std::chrono::steady_clock::time_point begin_{};
  Results results_;
};

/// A named row stands for the backend under test; a forced instruction set becomes part of its
/// name.
std::vector<BenchRow> choose_rows(const BenchOptions& options) {
  std::vector<BenchRow> rows;
  const auto chosen = [&](const std::string& id) {
    return options.filters.empty() ||
           std::any_of(options.filters.begin(), options.filters.end(),
                       [&](const std::string& pattern) {
                         return ::fnmatch(pattern.c_str(), id.c_str(), 0) == 0;
                       });
  };
  if (options.lines.empty() || !options.filters.empty()) {
    const bool gpu = options.under_test.backend == "cuda";
    for (BenchRow& row : gpu ? named_gpu_rows() : named_rows(omp_get_num_procs() > 2)) {
      if (!chosen(row.id)) continue;
      if (!options.under_test.isa.empty() && row.isa.empty())
        row.id += "." + options.under_test.isa;
      rows.push_back(std::move(row));
    }
  }
  for (const std::string& line : options.lines) {
    for (const testkit::Case& spec : testkit::expand_cases(line)) {
      const std::string text = testkit::to_line(spec);
      rows.push_back({.id = text, .what = text, .line = text, .graph = options.graph});
    }
  }
  return rows;
}

/// Rows of instruction sets that this machine lacks are told, not measured.
bool runs_here(const BenchRow& row, const std::string& backend) {
  for (const IsaInfo& isa : testkit::isas_of(backend)) {
    const bool wanted = isa.name == row.isa || isa.name == row.peer_isa;
    if (!wanted || isa.available) continue;
    fmt::print(stderr, "{}: not run: {}\n", row.id, isa.reason);
    return false;
  }
  return true;
}

void print_peaks(const Peaks& peaks) {
  const auto print = [](const char* name, double value, double unit, const char* unit_name) {
    if (value > 0) fmt::print(stderr, "peak {}: {:.1f} {}\n", name, value / unit, unit_name);
  };
  print("bf16", peaks.bf16_flops, 1e9, "GFLOP/s");
  print("bf16 in tiles", peaks.tile_bf16_flops, 1e9, "GFLOP/s");
  print("fp32", peaks.fp32_flops, 1e9, "GFLOP/s");
  print("fp32 of AVX2", peaks.avx2_fp32_flops, 1e9, "GFLOP/s");
  print("int8", peaks.int8_ops, 1e9, "GOP/s");
  print("int8 in tiles", peaks.tile_int8_ops, 1e9, "GOP/s");
  print("read", peaks.read_bytes_per_s, 1e9, "GB/s");
}

int list_rows(const std::vector<BenchRow>& rows) {
  fmt::print("id\tcase\tisa\twhat\n");
  for (const BenchRow& row : rows) {
    fmt::print("{}\t{}\t{}\t{}\n", row.id, row.line, row.isa.empty() ? "best" : row.isa, row.what);
  }
  return kGood;
}

/// Says what is to come where it may take minutes.
void announce(const std::vector<BenchRow>& rows, const BenchOptions& options) {
  if (rows.size() < 2) return;
  double sides = 0;
  for (const BenchRow& row : rows) sides += row.peer_line.empty() || options.no_peer ? 1 : 2;
  fmt::print(
      stderr,
      "{} rows: at least {:.0f} s of timing, and each row's data and oracle before it; --list "
      "shows them, --filter chooses\n",
      rows.size(), sides * options.rule.min_time);
}

int bench(const BenchOptions& options) {
  require_backend(options.under_test);
  std::vector<BenchRow> rows;
  try {
    rows = choose_rows(options);
  } catch (const testkit::CaseError& error) {
    throw Failure(kUsage, std::string("--case: ") + error.what());
  }
  if (options.list) return list_rows(rows);
  if (rows.empty()) throw Failure(kUsage, "--filter: no row has such a name; --list shows them");
  Bench bench(options);
  if (options.on_demand) {
    if (rows.size() != 1)
      throw Failure(kUsage, fmt::format("--on-demand: expected one row, got {}", rows.size()));
    return bench.serve(rows.front()) ? kGood : kCheckFailed;
  }
  bool good = true;
  std::erase_if(rows,
                [&](const BenchRow& row) { return !runs_here(row, options.under_test.backend); });
  announce(rows, options);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    bench.begin(i, rows.size());
    good = bench.measure(rows[i]) && good;
  }
  const Results& results = bench.finish();
  print_peaks(results.peaks);
  fmt::print("{}\n", tsv_header());
  for (const Row& row : results.rows) fmt::print("{}\n", tsv_line(row));
  if (!options.json.empty()) {
    PendingFile file(options.json);
    file.append(to_json(results));
    file.publish();
  }
  if (!options.baseline.empty()) {
    for (const std::string& line : regressions(results, options.baseline, options.tolerance)) {
      fmt::print(stderr, "regression: {}\n", line);
      good = false;
    }
  }
  return good ? kGood : kCheckFailed;
}

}  // namespace

void add_bench(CLI::App& app, Action& action, const std::string& command_line) {
  CLI::App* command =
      app.add_subcommand("bench", "Measure: verification first, then TSV on stdout");
  auto options = std::make_shared<BenchOptions>();
  options->under_test.backend = "cpu";
  options->command = command_line;
  command->add_option("--filter", options->filters,
                      "Rows whose names match, as in 'cpu.decode.*'; may be repeated");
  command->add_option("--case", options->lines, "A case in the case language; may be repeated");
  command->add_flag("--list", options->list, "Show the rows and measure nothing");
  command->add_flag("--roofline", options->roofline,
                    "Measure this machine's peaks too, and print shares of them");
  command->add_flag("--no-peer", options->no_peer,
                    "Leave out the other side of rows that are ratios");
  command->add_flag("--graph", options->graph, "GPU: run the cases of --case in a CUDA graph");
  command->add_option("--device", options->device, "GPU of the cuda backend")
      ->capture_default_str()
      ->check(CLI::Range(0, 1023));
  command->add_option("--gemm-flops", options->gemm_flops,
                      "GPU: its measured rate of bf16 matrix products, for shares");
  command->add_option("--read-rate", options->read_rate,
                      "GPU: its measured read rate in bytes a second, for shares");
  command->add_flag(
      "--on-demand", options->on_demand,
      "Verify one row, then run it and print its seconds for each line on standard input");
  command->add_option("--repeat", options->rule.repeat, "Runs of a row at least")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  command->add_option("--min-time", options->rule.min_time, "Seconds of all runs of a row at least")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 3600.0));
  command
      ->add_option("--max-time", options->rule.max_time,
                   "Seconds of a row after which no further run begins")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 36000.0));
  command->add_option("--json", options->json, "Write the results to this file");
  command->add_option("--baseline", options->baseline,
                      "Results to compare with; exit 1 on a regression");
  command->add_option("--tolerance", options->tolerance, "Slow-down that is no regression yet")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 100.0));
  add_backend_options(*command, options->under_test);
  command->callback([&action, options] { action = [options] { return bench(*options); }; });
}

}  // namespace msa::cli
