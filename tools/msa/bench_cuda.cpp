// SPDX-License-Identifier: MIT
#include "bench_cuda.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <optional>

#include "bench_data.h"
#include "cli.h"
#include "testkit/block_lists.h"
#include "testkit/compare.h"
#include "testkit/cuda_memory.h"
#include "testkit/generate.h"
#include "testkit/verify.h"

namespace msa::cli {
namespace {

using testkit::Operands;

constexpr int kSampledRows = 12;
constexpr double kWindow = 0.02;   // seconds of work handed over at once: hides launches
constexpr double kColdCaches = 4;  // sizes of the L2 cache that all sets together pass
constexpr std::int64_t kMaxSets = 16;
constexpr std::int64_t kGraphRuns = 16;  // at least

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw Error(ErrorCode::Device, "", std::string(what) + ": " + cudaGetErrorString(error));
}

/// Events of one stream; a run's time is from the end of the one before it to its own.
class CudaTimer final : public Timer {
 public:
  explicit CudaTimer(cudaStream_t stream) : stream_(stream) {}
  CudaTimer(const CudaTimer&) = delete;
  CudaTimer& operator=(const CudaTimer&) = delete;
  ~CudaTimer() override {
    for (cudaEvent_t event : events_) static_cast<void>(cudaEventDestroy(event));
  }

  double seconds(const std::function<void()>& call) override { return series(call, 1).front(); }

  /// `count` runs, handed over together.
  std::vector<double> series(const std::function<void()>& call, int count) {
    while (events_.size() <= static_cast<std::size_t>(count)) {
      cudaEvent_t event = nullptr;
      require(cudaEventCreate(&event), "cudaEventCreate");
      events_.push_back(event);
    }
    require(cudaEventRecord(events_[0], stream_), "cudaEventRecord");
    for (int n = 0; n < count; ++n) {
      call();
      require(cudaEventRecord(events_[static_cast<std::size_t>(n) + 1], stream_),
              "cudaEventRecord");
    }
    require(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    std::vector<double> found;
    for (int n = 0; n < count; ++n) {
      float milliseconds = 0;
      const auto at = static_cast<std::size_t>(n);
      require(cudaEventElapsedTime(&milliseconds, events_[at], events_[at + 1]),
              "cudaEventElapsedTime");
      found.push_back(1e-3 * milliseconds);
    }
    return found;
  }

 private:
  cudaStream_t stream_;
  std::vector<cudaEvent_t> events_;
};

/// Several runs as one graph.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& runs) : stream_(stream) {
    cudaGraph_t graph = nullptr;
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
    runs();
    require(cudaStreamEndCapture(stream, &graph), "end capture");
    const cudaError_t error = cudaGraphInstantiate(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    require(error, "cudaGraphInstantiate");
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { cudaGraphExecDestroy(exec_); }
  void launch() const { require(cudaGraphLaunch(exec_, stream_), "cudaGraphLaunch"); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t exec_ = nullptr;
};

/// One operation on tensors in the GPU's memory.
class GpuCall {
 public:
  GpuCall(const Problem& problem, const Operands& operands, testkit::MemorySpace& space)
      : plan_(make_plan(problem)),
        space_(space),
        workspace_(space.allocate(plan_.workspace_bytes())),
        sets_{operands} {}
  GpuCall(const GpuCall&) = delete;
  GpuCall& operator=(const GpuCall&) = delete;
  ~GpuCall() { space_.release(workspace_); }

  void run_set(std::size_t set) const {
    testkit::run(plan_, sets_[set % sets_.size()], view(), space_.stream());
  }
  void run_next() { run_set(next_++); }
  void add_set(const Operands& operands) { sets_.push_back(operands); }
  std::optional<Fault> fault() const { return check(plan_, view(), space_.stream()); }

  const Plan& plan() const { return plan_; }
  const Operands& operands() const { return sets_.front(); }
  std::size_t sets() const { return sets_.size(); }

 private:
  Workspace view() const { return {workspace_, plan_.workspace_bytes()}; }

  Plan plan_;
  testkit::MemorySpace& space_;
  void* workspace_;
  std::vector<Operands> sets_;
  std::size_t next_ = 0;
};

/// A stage of msa_attention as an operation of its own, on the same tensors.
struct Stage {
  const char* name;
  Op op;
};
constexpr std::array<Stage, 2> kStages{
    {{"select", Op::SelectBlocks}, {"attend", Op::SparseAttention}}};

Operands operands_of_stage(Op op, const Operands& whole) {
  Operands o;
  o.batch = whole.batch;
  if (op == Op::SelectBlocks) {
    o.index_q = whole.index_q;
    o.index_k = whole.index_k;
    o.index_k_scale = whole.index_k_scale;
    o.index_k8 = whole.index_k8;
    o.index_k8_bounds = whole.index_k8_bounds;
    o.block_ids = whole.block_ids;
    return o;
  }
  o.q = whole.q;
  o.k = whole.k;
  o.v = whole.v;
  o.k_scale = whole.k_scale;
  o.v_scale = whole.v_scale;
  o.block_ids_in = whole.block_ids;
  o.out = whole.out;
  o.lse = whole.lse;
  return o;
}

class GpuRow {
 public:
  GpuRow(const BenchRow& named, const CudaBenchOptions& options)
      : named_(named),
        options_(options),
        space_(testkit::cuda_memory(options.device)),
        timer_(static_cast<cudaStream_t>(space_->stream().handle)) {}

  bool measure(std::vector<Row>& rows) {
    say("making data");
    const testkit::Case spec = testkit::parse_case(named_.line);
    BenchData data(spec, *space_);
    if (named_.poison) data.poison();
    if (!measure_op(data, data.problem(), data.operands(), "", rows)) return false;
    if (!named_.peer_line.empty() && options_.peers && !measure_peer(data, rows.back()))
      return false;
    if (!named_.stages) return true;
    for (const Stage& stage : kStages) {
      Problem problem = data.problem();
      problem.op = stage.op;
      if (stage.op == Op::SelectBlocks) problem.outputs.lse = false;
      if (stage.op == Op::SparseAttention) {
        problem.index.filter.reset();
        problem.selection.precision = Precision::Exact;
      }
      const Operands operands = operands_of_stage(stage.op, data.operands());
      if (!measure_op(data, problem, operands, std::string(".") + stage.name, rows)) return false;
    }
    return true;
  }

  /// Seconds of planning and of the first run of this process, from an existing context.
  void measure_first_call(std::vector<Row>& rows) {
    say("first call");
    const testkit::Case spec = testkit::parse_case(named_.line);
    BenchData data(spec, *space_);
    space_->synchronize();
    HostTimer clock;
    std::optional<GpuCall> call;
    void* reserve = space_->allocate(std::size_t{1} << 30);  // grows the heap outside the clock
    space_->release(reserve);
    const double seconds = clock.seconds([&] {
      call.emplace(planned(data.problem()), data.operands(), *space_);
      call->run_next();
      space_->synchronize();
    });
    Row row = new_row("", spec, call->plan());
    row.seconds = {seconds};
    row.verified.reset();
    rows.push_back(std::move(row));
  }

 private:
  void say(const std::string& text) const { options_.say(named_.id + ": " + text); }

  Problem planned(Problem problem) const {
    const bool invariant = problem.options.batch_invariant;
    problem.options = options_.under_test;
    if (!named_.isa.empty()) problem.options.isa = named_.isa;
    problem.options.batch_invariant = invariant;
    return problem;
  }

  Row new_row(const std::string& suffix, const testkit::Case& spec, const Plan& plan) const {
    Row row;
    row.id = named_.id + suffix;
    row.what = suffix.empty() ? named_.what : named_.what + ": " + suffix.substr(1);
    row.spec = spec;
    row.spec.op = plan.problem().op;
    row.backend = plan.backend();
    row.isa = plan.isa();
    return row;
  }

  bool measure_op(BenchData& data, const Problem& problem, const Operands& operands,
                  const std::string& suffix, std::vector<Row>& rows) {
    GpuCall call(planned(problem), operands, *space_);
    Row row = new_row(suffix, data.spec(), call.plan());
    say("first run" + suffix);
    const double first = timer_.seconds([&] { call.run_next(); });
    say("comparing with the oracle" + suffix);
    if (!verify(data, call, row.id)) return false;
    row.verified = true;
    const Operands host = data.host_view(call.operands());
    row.work = useful_work(problem, host);
    describe_overlap(data.spec(), host, row);
    describe_executed(problem, row);
    say("timing" + suffix);
    add_sets(data, call, row.work.bytes);
    row.seconds = named_.graph ? time_graph(call) : time_runs(call, first);
    rows.push_back(std::move(row));
    return true;
  }

  /// Times the row's own other way, and the row once more behind it.
  bool measure_peer(BenchData& data, Row& row) {
    say("making the peer's data");
    const testkit::Case spec = testkit::parse_case(named_.peer_line);
    BenchData peer_data(spec, *space_);
    Problem problem = planned(peer_data.problem());
    if (!named_.peer_isa.empty()) problem.options.isa = named_.peer_isa;
    GpuCall peer(problem, peer_data.operands(), *space_);
    const double first = timer_.seconds([&] { peer.run_next(); });
    if (!verify(peer_data, peer, row.id + " (peer)")) return false;
    add_sets(peer_data, peer,
             useful_work(peer_data.problem(), peer_data.host_view(peer.operands())).bytes);
    say("timing the peer");
    row.peer = named_.peer;
    row.peer_seconds = named_.graph ? time_graph(peer) : time_runs(peer, first);
    for (double& seconds : row.peer_seconds) seconds *= named_.peer_runs;
    if (may_lose_ids(data.spec(), spec)) {
      row.recall = recall_of(peer_data.host_view(peer.operands()).block_ids,
                             data.host_view(data.operands()).block_ids);
    }
    GpuCall again(planned(data.problem()), data.operands(), *space_);
    add_sets(data, again, row.work.bytes);
    const double once = timer_.seconds([&] { again.run_next(); });
    const std::vector<double> more = named_.graph ? time_graph(again) : time_runs(again, once);
    row.seconds.insert(row.seconds.end(), more.begin(), more.end());
    return true;
  }

  bool verify(BenchData& data, const GpuCall& call, const std::string& id) const {
    std::string wrong;
    if (const std::optional<Fault> fault = call.fault()) {
      wrong = fmt::format("request {}, row {}: {}", fault->request, fault->row, fault->what);
    }
    const std::vector<HostRow> sampled =
        data.sample(call.plan().problem(), call.operands(), kSampledRows);
    std::vector<testkit::Report> reports(sampled.size());
    const testkit::CompareOptions exact{.exact_scores = testkit::has_exact_scores(data.spec()),
                                        .max_work = 1e18};
#pragma omp parallel for schedule(dynamic, 1)
    for (std::size_t n = 0; n < sampled.size(); ++n) {
      try {
        reports[n] = testkit::compare(sampled[n].problem, sampled[n].operands, exact);
      } catch (const std::exception& error) {
        reports[n].ok = false;
        reports[n].what = error.what();
      }
    }
    for (const testkit::Report& report : reports) {
      if (wrong.empty() && !report.ok) wrong = report.what;
    }
    if (wrong.empty()) return true;
    options_.say("");
    fmt::print(stderr, "msa: {}: wrong output, not timed: {}\n{}\n", id, wrong,
               testkit::repro_command(data.spec(), call.plan().problem().options));
    return false;
  }

  static void describe_overlap(const testkit::Case& spec, const Operands& host, Row& row) {
    const bool groups = std::any_of(spec.lengths.begin(), spec.lengths.end(),
                                    [](const testkit::Lengths& r) { return r.seqlen_q >= 8; });
    const Tensor& ids = host.block_ids ? host.block_ids : host.block_ids_in;
    if (spec.regime == testkit::Regime::Drift && ids && groups)
      row.blocks_per_8 = testkit::blocks_per_8(ids, host.batch);
  }

  /// What the union kernel multiplies: every block that any token of a tile listed, for all rows of
  /// the tile, masked or not; dense attention whole blocks on the diagonal. Not known without the
  /// mean length of the lists.
  static void describe_executed(const Problem& problem, Row& row) {
    const Attention& a = problem.attention;
    const double group = static_cast<double>(a.heads_q) / static_cast<double>(a.heads_kv);
    const double tile_tokens = std::min(32.0, std::floor(128 / group));
    if (!row.blocks_per_8 || tile_tokens != 8) return;
    const double tiles = std::ceil(static_cast<double>(problem.bounds.total_q) / 8) *
                         static_cast<double>(a.heads_kv);
    const double products = 2 * static_cast<double>(a.head_dim + a.value_dim) * 128 *
                            static_cast<double>(problem.selection.block_size);
    row.executed_ops = tiles * *row.blocks_per_8 * products + row.work.index_ops;
  }

  /// As many sets that what they touch together passes the cache several times.
  void add_sets(BenchData& data, GpuCall& call, double touched) const {
    int cache = 0;
    require(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, options_.device), "L2 size");
    const double wanted = std::ceil(kColdCaches * cache / std::max(touched, 1.0));
    const auto sets = std::clamp<std::int64_t>(static_cast<std::int64_t>(wanted), 1, kMaxSets);
    while (call.sets() < static_cast<std::size_t>(sets)) call.add_set(data.copy(call.operands()));
  }

  bool enough(const std::vector<double>& seconds, double total) const {
    const TimingRule& rule = options_.rule;
    return (static_cast<int>(seconds.size()) >= rule.repeat && total >= rule.min_time) ||
           total >= rule.max_time;
  }

  /// Runs in windows; the first window warms up, unless one run fills it.
  std::vector<double> collect(const std::function<void()>& launch, double once, double runs) {
    const int window = std::clamp(static_cast<int>(kWindow / std::max(once, 1e-6)), 1, 64);
    if (once < 0.2) timer_.series(launch, window);
    std::vector<double> seconds;
    double total = 0;
    while (!enough(seconds, total)) {
      for (const double s : timer_.series(launch, window)) {
        seconds.push_back(s / runs);
        total += s;
      }
    }
    return seconds;
  }

  std::vector<double> time_runs(GpuCall& call, double first) {
    return collect([&] { call.run_next(); }, first, 1);
  }

  std::vector<double> time_graph(GpuCall& call) {
    const auto sets = static_cast<std::int64_t>(call.sets());
    const std::int64_t runs = testkit::ceil_div(kGraphRuns, sets) * sets;
    const Graph graph(static_cast<cudaStream_t>(space_->stream().handle), [&] {
      for (std::int64_t n = 0; n < runs; ++n) call.run_set(static_cast<std::size_t>(n));
    });
    const double once = timer_.seconds([&] { graph.launch(); });
    return collect([&] { graph.launch(); }, once, static_cast<double>(runs));
  }

  const BenchRow& named_;
  const CudaBenchOptions& options_;
  std::unique_ptr<testkit::MemorySpace> space_;
  CudaTimer timer_;
};

/// The largest workspace of the row's cases; nothing runs.
void measure_workspace(const BenchRow& named, const CudaBenchOptions& options,
                       std::vector<Row>& rows) {
  Row row;
  row.id = named.id;
  row.what = named.what;
  row.bytes = 0;
  for (const testkit::Case& spec : testkit::expand_cases(named.line)) {
    Problem problem = testkit::problem_of(spec);
    problem.device = {DeviceType::Cuda, options.device};
    problem.options = options.under_test;
    const Plan plan = make_plan(problem);
    row.backend = plan.backend();
    row.isa = plan.isa();
    if (static_cast<double>(plan.workspace_bytes()) < *row.bytes) continue;
    row.bytes = static_cast<double>(plan.workspace_bytes());
    row.spec = spec;
  }
  row.verified.reset();
  rows.push_back(std::move(row));
}

}  // namespace

bool measures_on_gpu() { return true; }

std::string gpu_name(int device) {
  cudaDeviceProp properties{};
  require(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return properties.name;
}

bool measure_on_gpu(const BenchRow& named, const CudaBenchOptions& options,
                    std::vector<Row>& rows) {
  if (named.kind == BenchRow::Kind::Workspace) {
    measure_workspace(named, options, rows);
    return true;
  }
  GpuRow row(named, options);
  if (named.kind == BenchRow::Kind::FirstCall) {
    row.measure_first_call(rows);
    return true;
  }
  return row.measure(rows);
}

}  // namespace msa::cli
