// SPDX-License-Identifier: MIT
// `msa demo`: a long context with planted facts; dense attention and MSA on the CPU, checked
// against the oracle; figures on stdout, pictures in one HTML page.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <thread>

#include "cli.h"
#include "demo_data.h"
#include "demo_page.h"
#include "msa/msa.h"
#include "pending_file.h"
#include "progress.h"
#include "tensors.h"
#include "testkit/compare.h"
#include "testkit/number.h"
#include "testkit/oracle.h"
#include "testkit/random.h"
#include "testkit/requests.h"
#include "timing.h"
#include "useful.h"

namespace msa::cli {
namespace {

struct DemoOptions {
  std::int64_t tokens = 65536;
  std::string heads = "16/1";
  std::string out = "demo-out/index.html";
  std::uint64_t seed = 1;
  Options under_test;
};

/// A bar that moves while a call runs: the work behind us, and what the call has done if it is as
/// fast as those before.
class WorkBar {
 public:
  explicit WorkBar(double total) : total_(total), thread_([this] { tick(); }) {}
  ~WorkBar() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  WorkBar(const WorkBar&) = delete;
  WorkBar& operator=(const WorkBar&) = delete;

  /// Times a call that does so much work.
  template <class Fn>
  double timed(const std::string& text, double work, double work_per_second, const Fn& call) {
    {
      const std::lock_guard lock(mutex_);
      text_ = text;
      current_ = work;
      rate_ = work_per_second;
      start_ = Clock::now();
    }
    changed_.notify_all();
    HostTimer timer;
    const double seconds = timer.seconds(call);
    const std::lock_guard lock(mutex_);
    done_ += work;
    current_ = 0;
    return seconds;
  }

 private:
  using Clock = std::chrono::steady_clock;

  void tick() {
    Progress progress;
    std::unique_lock lock(mutex_);
    while (!stop_) {
      const double elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
      const double part = std::min(0.99 * current_, elapsed * rate_);
      progress.bar((done_ + part) / total_, text_);
      changed_.wait_for(lock, std::chrono::milliseconds(200));
    }
  }

  double total_;
  double done_ = 0, current_ = 0, rate_ = 0;
  std::string text_;
  Clock::time_point start_ = Clock::now();
  bool stop_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread thread_;  // last: it reads the rest
};

/// The first `tokens` tokens of the context as a problem of their own.
class Prefix {
 public:
  Prefix(const testkit::Operands& whole, std::int64_t tokens, const Options& options)
      : operands_(whole), lengths_{0, static_cast<std::int32_t>(tokens)} {
    for (Tensor* t : {&operands_.q, &operands_.k, &operands_.v, &operands_.index_q,
                      &operands_.index_k, &operands_.out, &operands_.lse, &operands_.block_ids}) {
      *t = testkit::narrow(*t, 0, 0, tokens);
    }
    operands_.batch.cu_seqlens_q = make_tensor(lengths_.data(), DType::I32, {2});
    operands_.batch.seqlens_k = make_tensor(lengths_.data() + 1, DType::I32, {1});
    settings_.topk = whole.block_ids.shape[2];
    settings_.options = options;
  }
  Prefix(const Prefix&) = delete;
  Prefix& operator=(const Prefix&) = delete;

  testkit::Operands dense(const Tensor& out) const {
    testkit::Operands o;
    o.q = operands_.q;
    o.k = operands_.k;
    o.v = operands_.v;
    o.batch = operands_.batch;
    o.out = testkit::narrow(out, 0, 0, operands_.q.shape[0]);
    return o;
  }
  const testkit::Operands& msa() const { return operands_; }
  const Settings& settings() const { return settings_; }

 private:
  testkit::Operands operands_;
  std::array<std::int32_t, 2> lengths_;
  Settings settings_;
};

/// Everything ready for one run of an operation.
struct Prepared {
  Prepared(Op op, const testkit::Operands& given, const Settings& settings)
      : operands(given),
        plan(make_plan(testkit::problem_of(op, given, settings))),
        workspace(plan.workspace_bytes()) {}
  void run() { testkit::run(plan, operands, {workspace.data(), plan.workspace_bytes()}); }

  testkit::Operands operands;
  Plan plan;
  Buffer workspace;
};

double ops_of(const UsefulWork& work) { return work.attend_ops + work.index_ops; }

/// Estimate before anything ran, of a context of so many tokens.
double dense_estimate(double tokens, std::int64_t heads) {
  return 2.0 * 256 * static_cast<double>(heads) * tokens * tokens / 2;
}

class Demo {
 public:
  explicit Demo(const DemoOptions& options) : options_(options) { parse_heads(); }

  int run() {
    Progress().say("making a context of " + std::to_string(options_.tokens) + " tokens");
    data_ = std::make_unique<DemoData>(options_.tokens, results_.heads_q, results_.heads_kv,
                                       options_.seed);
    const testkit::Operands& o = data_->operands;
    dense_out_ = OwnedTensor(o.out.dtype, {o.out.shape[0], o.out.shape[1], o.out.shape[2]});
    describe();
    measure_lengths();
    check_outputs();
    find_needles();
    draw_map();
    write_page();
    print_summary();
    return results_.verified && all_found() ? kGood : kCheckFailed;
  }

 private:
  void parse_heads() {
    char end = 0;
    long long q = 0, kv = 0;
    const int read = std::sscanf(options_.heads.c_str(), "%lld/%lld%c", &q, &kv, &end);
    if (read != 2 || q < 1 || kv < 1 || q > 128 || q % kv != 0) {
      throw Failure(
          kUsage,
          "--heads: expected query heads/key heads as in 16/1, the first a multiple of the second, "
          "got " +
              options_.heads);
    }
    results_.heads_q = q;
    results_.heads_kv = kv;
  }

  void describe() {
    const BuildInfo info = build_info();
    const testkit::Case& spec = data_->data.spec();
    results_.tokens = options_.tokens;
    results_.head_dim = spec.head_dim;
    results_.block_size = spec.block_size;
    results_.topk = spec.topk;
    results_.cpu = info.cpu;
    results_.version = info.version;
    results_.commit = info.commit;
    results_.threads = options_.under_test.threads > 0 ? options_.under_test.threads : info.threads;
  }

  std::vector<std::int64_t> lengths() const {
    std::vector<std::int64_t> all;
    for (std::int64_t n = options_.tokens; n >= 2048 && all.size() < 5; n /= 2) all.push_back(n);
    std::reverse(all.begin(), all.end());
    return all;
  }

  /// Both ways over growing parts of the context; the last part is all of it, whose outputs stay.
  void measure_lengths() {
    double total = 0;
    for (const std::int64_t n : lengths())
      total += 1.25 * dense_estimate(static_cast<double>(n), results_.heads_q);
    WorkBar bar(total);
    double rate = 2e11;  // operations per second, until a run has told
    for (const std::int64_t n : lengths()) {
      const Prefix prefix(data_->operands, n, options_.under_test);
      const double work = dense_estimate(static_cast<double>(n), results_.heads_q);
      Prepared dense(Op::DenseAttention, prefix.dense(dense_out_.view), prefix.settings());
      Prepared sparse(Op::MsaAttention, prefix.msa(), prefix.settings());
      const std::string tokens = std::to_string(n) + " tokens: ";
      LengthTimes times{.tokens = n};
      times.msa_seconds = best_of_two(bar, tokens + "MSA", work / 8, rate, sparse);
      times.dense_seconds = bar.timed(tokens + "dense", work, rate, [&] { dense.run(); });
      rate = work / times.dense_seconds;
      results_.times.push_back(times);
      results_.isa = dense.plan.isa();
      if (n != options_.tokens) continue;
      dense_problem_ = dense.plan.problem();
      msa_problem_ = sparse.plan.problem();
      results_.dense_ops = ops_of(useful_work(dense_problem_, dense.operands));
      results_.msa_ops = ops_of(useful_work(msa_problem_, sparse.operands));
    }
  }

  /// A short call is run twice: the first touch of its workspace would weigh on it.
  double best_of_two(WorkBar& bar, const std::string& text, double work, double rate,
                     Prepared& call) {
    const double first = bar.timed(text, work, rate, [&] { call.run(); });
    if (first > 3) return first;
    return std::min(first, bar.timed(text, work, rate, [&] { call.run(); }));
  }

  testkit::Operands dense_operands() const {
    testkit::Operands o = data_->operands;
    o.index_q = o.index_k = o.block_ids = o.lse = {};
    o.out = dense_out_.view;
    return o;
  }

  /// Sampled rows against the oracle, by the contract's tolerances; and the errors themselves, for
  /// the histogram.
  void check_outputs() {
    Progress progress;
    progress.say("comparing sampled rows with the oracle");
    const testkit::Operands dense = dense_operands();
    const testkit::Report of_dense = testkit::compare(dense_problem_, dense);
    const testkit::Report of_msa = testkit::compare(msa_problem_, data_->operands);
    results_.verified = of_dense.ok && of_msa.ok;
    results_.rows_compared = of_dense.rows_compared + of_msa.rows_compared;
    progress.clear();
    for (const testkit::Report* report : {&of_dense, &of_msa}) {
      if (!report->ok) fmt::print(stderr, "msa: wrong output: {}\n", report->what);
    }
    results_.dense_errors = errors(dense_problem_, dense);
    Problem attend = msa_problem_;
    attend.op = Op::SparseAttention;
    testkit::Operands sparse = data_->operands;
    sparse.index_q = sparse.index_k = sparse.block_ids = {};
    sparse.block_ids_in = data_->operands.block_ids;
    results_.msa_errors = errors(attend, sparse);
  }

  /// |error| of every element of some rows, the needles' among them.
  std::vector<double> errors(const Problem& problem, const testkit::Operands& operands) const {
    std::vector<double> all;
    const testkit::Request request = testkit::requests_of(problem, operands.batch).front();
    const std::int64_t heads = operands.out.shape[1], dim = operands.out.shape[2];
    std::vector<float> got(static_cast<std::size_t>(dim));
    constexpr std::int64_t kRows = 6;  // half a second each of the oracle at 64K tokens
    for (std::int64_t n = 0; n < kRows; ++n) {
      const std::int64_t row = data_->needles[static_cast<std::size_t>(4 * n)].asked_by - n % 2;
      const testkit::Answer answer(problem, operands, request, row, {.kv_heads = problem.heads_kv});
      for (std::int64_t h = 0; h < heads; ++h) {
        testkit::load(testkit::address(operands.out, row, h), operands.out.dtype, dim, got.data());
        const auto* expected =
            reinterpret_cast<const float*>(testkit::address(answer.operands().out, 0, h));
        for (std::int64_t d = 0; d < dim; ++d) {
          all.push_back(
              std::abs(static_cast<double>(got[static_cast<std::size_t>(d)]) - expected[d]));
        }
      }
    }
    return all;
  }

  void find_needles() {
    const testkit::Operands& o = data_->operands;
    for (const Needle& needle : data_->needles) {
      const auto block = static_cast<std::int32_t>(needle.key / results_.block_size);
      NeedleResult result{.key = needle.key, .asked_by = needle.asked_by, .found = true};
      for (std::int64_t h = 0; h < o.block_ids.shape[1]; ++h) {
        bool listed = false;
        for (std::int64_t slot = 0; slot < results_.topk; ++slot) {
          listed = listed || testkit::int_at(o.block_ids, needle.asked_by, h, slot) == block;
        }
        result.found = result.found && listed;
      }
      result.in_window = needle.asked_by / results_.block_size - block < results_.topk;
      result.dense_cosine = value_read_back(o, dense_out_.view, needle);
      result.msa_cosine = value_read_back(o, o.out, needle);
      results_.needles.push_back(result);
    }
    results_.blocks_per_8 = testkit::blocks_per_8(o.block_ids, o.batch);
  }

  bool all_found() const {
    return std::all_of(results_.needles.begin(), results_.needles.end(),
                       [](const NeedleResult& n) { return n.found && n.msa_cosine > 0.9; });
  }

  /// Head 0: how often the queries of a bucket of rows chose the blocks of a bucket.
  void draw_map() {
    constexpr std::int64_t kMost = 256;
    const Tensor& ids = data_->operands.block_ids;
    const std::int64_t rows = ids.shape[0];
    const std::int64_t blocks = testkit::ceil_div(rows, results_.block_size);
    results_.map_rows = std::min(kMost, rows);
    results_.map_blocks = std::min(kMost, blocks);
    std::vector<double> counts(static_cast<std::size_t>(results_.map_rows * results_.map_blocks),
                               0);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t slot = 0; slot < results_.topk; ++slot) {
        const std::int32_t id = testkit::int_at(ids, row, 0, slot);
        if (id < 0) break;
        const std::int64_t y = row * results_.map_rows / rows;
        counts[static_cast<std::size_t>(y * results_.map_blocks +
                                        id * results_.map_blocks / blocks)] += 1;
      }
    }
    const double full = static_cast<double>(rows * blocks) /
                        static_cast<double>(results_.map_rows * results_.map_blocks);
    for (const double count : counts) {
      // The square root keeps what few queries chose visible.
      results_.map.push_back(
          static_cast<std::uint8_t>(std::lround(255 * std::sqrt(std::min(1.0, count / full)))));
    }
  }

  void write_page() const {
    const std::filesystem::path path(options_.out);
    std::error_code error;
    if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path(), error);
    PendingFile file(options_.out);
    file.append(demo_page(results_));
    file.publish();
  }

  void print_summary() const {
    fmt::print("tokens\t{}\nheads\t{}/{}\nisa\t{}\nthreads\t{}\n", results_.tokens,
               results_.heads_q, results_.heads_kv, results_.isa, results_.threads);
    for (const LengthTimes& t : results_.times) {
      fmt::print("time of {} tokens\tdense {:.3f} s\tMSA {:.3f} s\t{:.2f}x\n", t.tokens,
                 t.dense_seconds, t.msa_seconds, t.dense_seconds / t.msa_seconds);
    }
    fmt::print("speedup\t{:.2f}x\ncompute saved\t{:.1f} %\n", results_.speedup(),
               100 * results_.saved());
    fmt::print("needles found\t{} of {} (a window of as many keys: {})\n", results_.needles_found(),
               results_.needles.size(), results_.needles_in_window());
    fmt::print("rows compared with the oracle\t{}\t{}\n", results_.rows_compared,
               results_.verified ? "good" : "WRONG");
    fmt::print("page\t{}\n", options_.out);
  }

  const DemoOptions& options_;
  std::unique_ptr<DemoData> data_;
  OwnedTensor dense_out_;
  Problem dense_problem_, msa_problem_;
  DemoResults results_;
};

int demo(const DemoOptions& options) {
  require_backend(options.under_test);
  return Demo(options).run();
}

}  // namespace

void add_demo(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "demo", "Find needles in a long context, fast; writes a page with pictures");
  auto options = std::make_shared<DemoOptions>();
  options->under_test.backend = "cpu";
  command->add_option("--tokens", options->tokens, "Length of the context")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{4096}, std::int64_t{1} << 20));
  command->add_option("--heads", options->heads, "Query heads/key heads")->capture_default_str();
  command->add_option("--out", options->out, "The page")->capture_default_str();
  command->add_option("--seed", options->seed, "Of the context")->capture_default_str();
  add_backend_options(*command, options->under_test);
  command->callback([&action, options] { action = [options] { return demo(*options); }; });
}

}  // namespace msa::cli
