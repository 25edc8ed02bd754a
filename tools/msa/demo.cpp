// SPDX-License-Identifier: MIT
// `msa demo`: a long context with planted facts; dense attention and MSA on the CPU or a GPU,
// checked against the oracle; figures on stdout, pictures in one HTML page.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "cli.h"
#include "demo_data.h"
#include "demo_page.h"
#include "demo_place.h"
#include "msa/msa.h"
#include "pending_file.h"
#include "progress.h"
#include "tensors.h"
#include "testkit/block_lists.h"
#include "testkit/compare.h"
#include "testkit/cuda_memory.h"
#include "testkit/number.h"
#include "testkit/oracle.h"
#include "testkit/random.h"
#include "testkit/requests.h"
#include "timing.h"
#include "useful.h"

namespace msa::cli {
namespace {

struct DemoOptions {
  std::int64_t tokens = 0;  // 0: what the backend does in a minute or two
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

/// The first `tokens` tokens of the context as a problem of their own, in host memory.
class Prefix {
 public:
  /// `starts` holds 0 and the number of tokens.
  Prefix(const testkit::Operands& whole, const std::int32_t* starts, const Options& options)
      : operands_(whole) {
    for (Tensor* t : {&operands_.q, &operands_.k, &operands_.v, &operands_.index_q,
                      &operands_.index_k, &operands_.out, &operands_.lse, &operands_.block_ids}) {
      *t = testkit::narrow(*t, 0, 0, starts[1]);
    }
    operands_.batch.cu_seqlens_q = make_tensor(starts, DType::I32, {2});
    operands_.batch.seqlens_k = make_tensor(starts + 1, DType::I32, {1});
    settings_.topk = whole.block_ids.shape[2];
    settings_.options = options;
  }

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
  Settings settings_;
};

/// How often calls run at least, and what to expect of them before one has told.
struct Pace {
  int dense_runs;
  int msa_runs;
  double operations_per_second;
};
// The first touch of its workspace would weigh on a short call of MSA.
constexpr Pace kCpuPace{.dense_runs = 1, .msa_runs = 2, .operations_per_second = 2e11};
// The first call of a kernel on a GPU loads it.
constexpr Pace kGpuPace{.dense_runs = 3, .msa_runs = 3, .operations_per_second = 4e14};
constexpr double kLongCall = 3;  // seconds: one run is enough

constexpr std::int64_t kCpuTokens = 65536;
// Dense attention of 16/1 heads of 128: 4 * 128 * 16 * tokens^2 / 2 = 4.5e15 operations, 8 seconds
// at 550 TFLOP/s.
constexpr std::int64_t kGpuTokens = 1048576;

double ops_of(const UsefulWork& work) { return work.attend_ops + work.index_ops; }

/// Estimate before anything ran, of a context of so many tokens.
double dense_estimate(double tokens, std::int64_t heads) {
  return 2.0 * 256 * static_cast<double>(heads) * tokens * tokens / 2;
}

class Demo {
 public:
  explicit Demo(const DemoOptions& options)
      : options_(options),
        gpu_(options.under_test.backend == "cuda" ? testkit::cuda_memory(0) : nullptr),
        place_(gpu_ ? *gpu_ : testkit::host_memory()),
        pace_(gpu_ ? kGpuPace : kCpuPace) {
    parse_heads();
  }

  int run() {
    make_context();
    describe();
    measure_lengths();
    bring_back();
    count_work();
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

  void make_context() {
    Progress progress;
    progress.say("making a context of " + std::to_string(options_.tokens) + " tokens");
    data_ = std::make_unique<DemoData>(options_.tokens, results_.heads_q, results_.heads_kv,
                                       options_.seed, !place_.on_gpu());
    const testkit::Operands& o = data_->operands;
    dense_out_ = OwnedTensor(o.out.dtype, {o.out.shape[0], o.out.shape[1], o.out.shape[2]});
    move_in();
  }

  void describe() {
    const BuildInfo info = build_info();
    const testkit::Case& spec = data_->data.spec();
    results_.tokens = options_.tokens;
    results_.head_dim = spec.head_dim;
    results_.block_size = spec.block_size;
    results_.topk = spec.topk;
    results_.backend = options_.under_test.backend;
    results_.cpu = info.cpu;
    for (const BackendInfo& backend : info.backends) {
      if (place_.on_gpu() && backend.name == "cuda") results_.gpu = backend.devices.at(0);
    }
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

  /// Starts of every length's batch, and on a GPU everything that its calls read and write.
  void move_in() {
    for (const std::int64_t n : lengths()) {
      starts_.push_back(0);
      starts_.push_back(static_cast<std::int32_t>(n));
    }
    const auto count = static_cast<std::int64_t>(starts_.size());
    place_.hold(make_tensor(starts_.data(), DType::I32, {count}), Place::Contents::Copied);
    const testkit::Operands& o = data_->operands;
    for (const Tensor& t : {o.q, o.k, o.v, o.index_q, o.index_k})
      place_.hold(t, Place::Contents::Copied);
    for (const Tensor& t : {o.out, o.lse, o.block_ids, dense_out_.view})
      place_.hold(t, Place::Contents::Unset);
  }

  /// Both ways over growing parts of the context; the last part is all of it, whose outputs stay.
  void measure_lengths() {
    double total = 0;
    for (std::size_t i = 1; i < starts_.size(); i += 2)
      total +=
          (pace_.dense_runs + pace_.msa_runs / 8.0) * dense_estimate(starts_[i], results_.heads_q);
    WorkBar bar(total);
    double rate = pace_.operations_per_second;
    for (std::size_t i = 0; i < starts_.size(); i += 2) {
      const std::int64_t n = starts_[i + 1];
      const Prefix prefix(data_->operands, &starts_[i], options_.under_test);
      const double work = dense_estimate(static_cast<double>(n), results_.heads_q);
      const PlacedCall dense(Op::DenseAttention, prefix.dense(dense_out_.view), prefix.settings(),
                             place_);
      const PlacedCall sparse(Op::MsaAttention, prefix.msa(), prefix.settings(), place_);
      const std::string tokens = std::to_string(n) + " tokens: ";
      LengthTimes times{.tokens = n};
      times.msa_seconds = best_of(bar, tokens + "MSA", work / 8, rate, pace_.msa_runs, sparse);
      times.dense_seconds = best_of(bar, tokens + "dense", work, rate, pace_.dense_runs, dense);
      rate = work / times.dense_seconds;
      results_.times.push_back(times);
      results_.isa = dense.plan().isa();
      for (const PlacedCall* call : {&sparse, &dense}) require_no_fault(*call);
      dense_problem_ = on_host(dense.plan().problem());
      msa_problem_ = on_host(sparse.plan().problem());
    }
  }

  /// The shortest of some runs; a long one is not repeated.
  static double best_of(WorkBar& bar, const std::string& text, double work, double rate, int runs,
                        const PlacedCall& call) {
    double best = bar.timed(text, work, rate, [&] { call.run(); });
    for (int n = 1; n < runs && best <= kLongCall; ++n)
      best = std::min(best, bar.timed(text, work, rate, [&] { call.run(); }));
    return best;
  }

  /// Nothing is wrong with the demo's own batch: a fault is the backend's.
  static void require_no_fault(const PlacedCall& call) {
    const std::optional<Fault> fault = call.fault();
    if (!fault) return;
    throw Failure(kCheckFailed, fmt::format("{}: a legal call left a fault: request {}, row {}: {}",
                                            to_string(call.plan().problem().op), fault->request,
                                            fault->row, fault->what));
  }

  /// The problem as the oracle is asked it.
  static Problem on_host(Problem problem) {
    problem.device = {};
    return problem;
  }

  /// From a GPU: the whole selection, which pictures and counts read, and of the outputs, which are
  /// much larger, the rows that somebody looks at.
  void bring_back() {
    const testkit::Operands& o = data_->operands;
    place_.fetch(o.block_ids);
    std::vector<std::int64_t> rows = testkit::rows_to_compare(dense_problem_, dense_operands());
    const std::vector<std::int64_t> of_msa = testkit::rows_to_compare(msa_problem_, o);
    rows.insert(rows.end(), of_msa.begin(), of_msa.end());
    for (const Needle& needle : data_->needles) rows.push_back(needle.asked_by);
    for (std::int64_t n = 0; n < kErrorRows; ++n) rows.push_back(error_row(n));
    for (const Tensor& t : {o.out, o.lse, dense_out_.view}) place_.fetch(t, rows);
  }

  void count_work() {
    results_.dense_ops = ops_of(useful_work(dense_problem_, dense_operands()));
    results_.msa_ops = ops_of(useful_work(msa_problem_, data_->operands));
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
    progress.say("measuring the errors of some rows");
    results_.dense_errors = errors(dense_problem_, dense);
    Problem attend = msa_problem_;
    attend.op = Op::SparseAttention;
    testkit::Operands sparse = data_->operands;
    sparse.index_q = sparse.index_k = sparse.block_ids = {};
    sparse.block_ids_in = data_->operands.block_ids;
    results_.msa_errors = errors(attend, sparse);
  }

  static constexpr std::int64_t kErrorRows = 6;  // 15 s each of one core at a million tokens

  /// Every other one is a needle's.
  std::int64_t error_row(std::int64_t n) const {
    return data_->needles[static_cast<std::size_t>(4 * n)].asked_by - n % 2;
  }

  /// |error| of every element of some rows; each of their KV heads is a task of its own.
  std::vector<double> errors(const Problem& problem, const testkit::Operands& operands) const {
    const testkit::Request request = testkit::requests_of(problem, operands.batch).front();
    const std::int64_t tasks = kErrorRows * problem.attention.heads_kv;
    std::vector<std::vector<double>> found(static_cast<std::size_t>(tasks));
    std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1)
    for (std::int64_t n = 0; n < tasks; ++n) {
      try {
        found[static_cast<std::size_t>(n)] =
            errors_of_head(problem, operands, request, error_row(n / problem.attention.heads_kv),
                           n % problem.attention.heads_kv);
      } catch (...) {
#pragma omp critical
        failure = std::current_exception();
      }
    }
    if (failure) std::rethrow_exception(failure);
    std::vector<double> all;
    for (const std::vector<double>& part : found) all.insert(all.end(), part.begin(), part.end());
    return all;
  }

  static std::vector<double> errors_of_head(const Problem& problem,
                                            const testkit::Operands& operands,
                                            const testkit::Request& request, std::int64_t row,
                                            std::int64_t kv_head) {
    const testkit::Answer answer(problem, operands, request, row,
                                 {.kv_head_begin = kv_head, .kv_heads = 1});
    const std::int64_t group = problem.attention.heads_q / problem.attention.heads_kv,
                       dim = operands.out.shape[2];
    std::vector<float> got(static_cast<std::size_t>(dim));
    std::vector<double> all;
    for (std::int64_t g = 0; g < group; ++g) {
      testkit::load(testkit::address(operands.out, row, kv_head * group + g), operands.out.dtype,
                    dim, got.data());
      const auto* expected =
          reinterpret_cast<const float*>(testkit::address(answer.operands().out, 0, g));
      for (std::int64_t d = 0; d < dim; ++d) {
        all.push_back(
            std::abs(static_cast<double>(got[static_cast<std::size_t>(d)]) - expected[d]));
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
    const Tensor& ids = data_->operands.block_ids;
    const std::int64_t blocks = testkit::ceil_div(ids.shape[0], results_.block_size);
    results_.map = selection_map(ids, 0, ids.shape[0], 0, 1, blocks);
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
    fmt::print("tokens\t{}\nheads\t{}/{}\nbackend\t{}\nmachine\t{}\nisa\t{}\nthreads\t{}\n",
               results_.tokens, results_.heads_q, results_.heads_kv, results_.backend,
               results_.gpu.empty() ? results_.cpu : results_.gpu, results_.isa, results_.threads);
    for (const LengthTimes& t : results_.times) {
      fmt::print("time of {} tokens\tdense {:.4f} s\tMSA {:.4f} s\t{:.2f}x\n", t.tokens,
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
  std::unique_ptr<testkit::MemorySpace> gpu_;  // none: the CPU computes
  std::unique_ptr<DemoData> data_;
  OwnedTensor dense_out_;
  std::vector<std::int32_t> starts_;  // 0 and the tokens of each length, shortest first
  Place place_;
  Pace pace_;
  Problem dense_problem_, msa_problem_;
  DemoResults results_;
};

/// What computes where nobody said: a GPU where this build has one. Instruction sets and threads
/// are the CPU's.
std::string default_backend(const Options& options) {
  if (!options.isa.empty() || options.threads != 0) return "cpu";
  const char* wanted = std::getenv("MSA_BACKEND");
  if (wanted != nullptr && *wanted != '\0') return wanted;
  for (const BackendInfo& backend : build_info().backends) {
    if (backend.name == "cuda" && backend.available) return "cuda";
  }
  return "cpu";
}

int demo(DemoOptions options) {
  Options& under_test = options.under_test;
  if (under_test.backend.empty()) under_test.backend = default_backend(under_test);
  require_backend(under_test);
  if (options.tokens == 0) options.tokens = under_test.backend == "cuda" ? kGpuTokens : kCpuTokens;
  return Demo(options).run();
}

}  // namespace

void add_demo(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "demo", "Find needles in a long context, fast; writes a page with pictures");
  auto options = std::make_shared<DemoOptions>();
  command
      ->add_option("--tokens", options->tokens,
                   fmt::format("Length of the context; default: {}, on a GPU {}, where dense "
                               "attention of 16/1 heads is 4.5 PFLOP: some 8 s at 550 TFLOP/s",
                               kCpuTokens, kGpuTokens))
      ->check(CLI::Range(std::int64_t{4096}, kGpuTokens));
  command->add_option("--heads", options->heads, "Query heads/key heads")->capture_default_str();
  command->add_option("--out", options->out, "The page")->capture_default_str();
  command->add_option("--seed", options->seed, "Of the context")->capture_default_str();
  add_backend_options(*command, options->under_test);
  command->get_option("--backend")
      ->description("cpu or cuda; default: cuda where `msa info` shows a GPU, else cpu");
  command->callback([&action, options] { action = [options] { return demo(*options); }; });
}

}  // namespace msa::cli
