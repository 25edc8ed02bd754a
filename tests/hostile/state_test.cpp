// SPDX-License-Identifier: MIT
// Plans and workspaces: the same bits whatever the threads, the batch around a request and who else
// runs; plans that serve other lengths; workspaces that are too small.
#include <omp.h>

#include <cstdlib>
#include <thread>

#include "targets.h"
#include "testkit/generate.h"
#include "testkit/requests.h"

namespace msa::testkit {
namespace {

class State : public OnTarget {
 protected:
  Plan plan_of(const Data& data, int threads = 0, bool invariant = false) const {
    Problem problem = data.problem();
    const bool wanted = problem.options.batch_invariant || invariant;
    problem.options = options();
    problem.options.threads = threads;
    problem.options.batch_invariant = wanted;
    return make_plan(problem);
  }

  static void run_plan(const Plan& plan, Data& data) {
    GuardedWorkspace workspace(plan.workspace_bytes(), host_memory());
    run(plan, data.prepare(), workspace.view());
    EXPECT_TRUE(workspace.guards_intact());
    EXPECT_EQ(data.damage(), "");
  }

  static std::vector<std::byte> bits(const Tensor& t) {
    std::vector<std::byte> bytes;
    for_each_run(t, [&](const std::byte* run, std::size_t count) {
      bytes.insert(bytes.end(), run, run + count);
    });
    return bytes;
  }

  /// Every output, the lists of an inversion up to their lengths included.
  static std::vector<std::byte> output_bits(const Data& data) {
    std::vector<std::byte> all;
    Operands o = data.operands();
    const std::size_t first = first_output(o);
    std::size_t index = 0;
    for_each_tensor(o, [&](const Tensor& t) {
      if (index++ < first) return;
      const std::vector<std::byte> some = bits(t);
      all.insert(all.end(), some.begin(), some.end());
    });
    return all;
  }
};

const char* const kMixed =
    "op=msa heads=8/2 dim=64 block=32 topk=4 lens=70:300,1:500,0:9,8:90,33:33 page=32 lse=1";

TEST_P(State, SameBitsWithAnyNumberOfThreads) {
  const std::string rest =
      " heads=8/8 dim=64 block=32 topk=4 lens=70:300,1:500,0:9,8:90,33:33 page=32";
  for (const std::string op :
       {"dense lse=1 block_max=1", "sparse lse=1", "sparse lse=1 kv=q8kv4", "msa lse=1", "scores",
        "scores index_k=e4m3/page", "select chosen=1", "select chosen=1 filter=1", "topk chosen=1",
        "merge_states lse=1 parts=5", "merge_selections chosen=1 parts=5", "invert",
        "quantize kv=e4m3/token", "quantize kv=nvfp4", "quantize_index"}) {
    Data data(parse_case("op=" + op + rest));
    run_plan(plan_of(data, 1), data);
    const auto expected = output_bits(data);
    EXPECT_FALSE(expected.empty());
    for (const int threads : {2, 3, 5}) {
      run_plan(plan_of(data, threads), data);
      EXPECT_EQ(output_bits(data), expected) << op << ", " << threads << " threads";
    }
  }
}

// Planning reads the problem alone: twice the same plan, whatever ran in between.
TEST_P(State, PlanningIsPure) {
  for (const std::string op :
       {"dense", "scores", "topk", "select", "select filter=1", "sparse", "msa", "merge_states",
        "merge_selections", "invert", "quantize kv=q8kv4", "quantize_index"}) {
    Data data(parse_case("op=" + op + " heads=8/8 dim=64 block=32 topk=4 lens=70:300,1:500,8:90"));
    const Plan first = plan_of(data, 2);
    run_plan(first, data);
    const Plan second = plan_of(data, 2);
    EXPECT_EQ(first.to_string(), second.to_string());
    EXPECT_EQ(first.workspace_bytes(), second.workspace_bytes());
    EXPECT_EQ(first.problem(), second.problem());
  }
}

TEST_P(State, BatchInvariant) {
  // A request's own row numbers differ in the two batches, so its vectors are copied by views of
  // the larger one.
  for (const std::string op :
       {"dense lse=1", "sparse lse=1", "msa lse=1", "scores", "select chosen=1", "topk chosen=1"}) {
    Case spec =
        parse_case("op=" + op + " heads=8/2 dim=64 block=32 topk=4 lens=70:300,1:500,8:90,40:40");
    spec.batch_invariant = true;
    Data data(spec);
    const Plan plan = plan_of(data, 0, true);
    run_plan(plan, data);
    const auto requests = requests_of(data.problem(), data.operands().batch);
    for (const Request& r : requests) {
      const auto rows = [&](const Tensor& t, std::int64_t begin, std::int64_t count) {
        if (!t) return t;
        Tensor part = t;
        part.data = address(t, begin);
        part.shape[0] = count;
        return part;
      };
      Operands alone = data.operands();
      const std::vector<Tensor*> outputs{&alone.out, &alone.lse, &alone.block_ids,
                                         &alone.chosen_scores, &alone.scores};
      for (Tensor* t : {&alone.q, &alone.index_q, &alone.block_ids_in, &alone.scores_in}) {
        *t = rows(*t, r.q_begin, r.seqlen_q);
      }
      std::vector<std::vector<std::byte>> expected;
      for (Tensor* t : outputs) {
        if (!*t) continue;
        *t = rows(*t, r.q_begin, r.seqlen_q);
        expected.push_back(bits(*t));
      }
      for (Tensor* t : {&alone.k, &alone.v, &alone.index_k}) *t = rows(*t, r.k_begin, r.seqlen_k);
      std::vector<std::int32_t> numbers{0, static_cast<std::int32_t>(r.seqlen_q),
                                        static_cast<std::int32_t>(r.seqlen_k)};
      alone.batch = {};
      alone.batch.cu_seqlens_q = make_tensor(numbers.data(), DType::I32, {2});
      alone.batch.seqlens_k = make_tensor(&numbers[2], DType::I32, {1});
      GuardedWorkspace workspace(plan.workspace_bytes(), host_memory());
      run(plan, alone, workspace.view());
      std::size_t n = 0;
      for (const Tensor* t : outputs) {
        if (*t) {
          EXPECT_EQ(bits(*t), expected[n++]) << op << ", request " << r.index;
        }
      }
      EXPECT_GT(n, 0u);
    }
  }
}

TEST_P(State, OnePlanServesEveryLengthWithinItsBounds) {
  const Case largest = parse_case(
      "op=msa heads=4/2 dim=64 block=32 topk=4 lens=64:400,64:400,64:400 page=32 pool=64 lse=1");
  Data bound(largest);
  const Plan plan = plan_of(bound);
  GuardedWorkspace workspace(plan.workspace_bytes(), host_memory());
  for (const char* lens : {"1:400", "64:64,3:9", "0:0,5:400,0:7", "none", "64:400,64:400,64:400"}) {
    Case spec = largest;
    spec.lengths = parse_case(std::string("lens=") + lens).lengths;
    Data data(spec);
    run(plan, data.prepare(), workspace.view());  // the workspace holds what the call before left
    const Report report = compare(data.problem(), data.operands());
    EXPECT_TRUE(report.ok) << lens << ": " << report.what;
    EXPECT_EQ(data.damage(), "");
  }
}

TEST_P(State, TwoPlansOnOneWorkspace) {
  Data first(parse_case("op=dense heads=4/2 dim=64 lens=40:200 lse=1"));
  Data second(parse_case("op=select heads=4/4 dim=32 block=16 topk=4 lens=40:300"));
  const Plan a = plan_of(first), b = plan_of(second);
  GuardedWorkspace workspace(std::max(a.workspace_bytes(), b.workspace_bytes()), host_memory());
  for (int n = 0; n < 2; ++n) {
    run(a, first.prepare(), workspace.view());
    EXPECT_TRUE(compare(first.problem(), first.operands()).ok);
    run(b, second.prepare(), workspace.view());
    EXPECT_TRUE(compare(second.problem(), second.operands()).ok);
  }
}

TEST_P(State, ChangedScaleNeedsNoNewTensors) {
  for (const char* scale : {"0.125", "0.25", "-0.125"}) {
    Data data(parse_case(std::string("op=dense heads=4/2 dim=64 lens=9:100 scale=") + scale));
    run_plan(plan_of(data), data);
    const Report report = compare(data.problem(), data.operands());
    EXPECT_TRUE(report.ok) << scale << ": " << report.what;
  }
}

TEST_P(State, WorkspaceTooSmallOrMisaligned) {
  Data data(parse_case(kMixed));
  const Plan plan = plan_of(data);
  if (plan.workspace_bytes() == 0) return;
  GuardedWorkspace workspace(plan.workspace_bytes() + 1, host_memory());
  const Workspace whole = workspace.view();
  const auto misaligned = static_cast<std::byte*>(whole.data) + 1;
  for (const Workspace bad : {Workspace{whole.data, plan.workspace_bytes() - 1}, Workspace{},
                              Workspace{nullptr, plan.workspace_bytes()},
                              Workspace{misaligned, plan.workspace_bytes()}}) {
    const Operands operands = data.prepare();
    try {
      run(plan, operands, bad);
      ADD_FAILURE() << "accepted a workspace of " << bad.bytes << " bytes";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::Workspace) << error.what();
    }
    EXPECT_EQ(data.touched(), "");
  }
}

// Threads share plans and nothing else; each must get the bits of a lone run.
TEST_P(State, ConcurrentRuns) {
  const std::vector<std::string> lines{
      "op=msa heads=4/2 dim=32 block=16 topk=4 lens=40:200,1:90 page=16 lse=1",
      "op=dense heads=4/2 dim=32 lens=33:100 lse=1",
      "op=select heads=2/2 dim=32 block=16 topk=4 lens=20:300",
  };
  std::vector<Plan> plans;
  std::vector<std::vector<std::byte>> expected;
  const auto result = [](const Data& data) {
    const Operands& o = data.operands();
    return bits(o.out ? o.out : o.block_ids);
  };
  for (const std::string& line : lines) {
    Data data(parse_case(line));
    plans.push_back(plan_of(data, 1));
    run_plan(plans.back(), data);
    expected.push_back(result(data));
  }
  constexpr int kThreads = 6, kRounds = 5;
  std::vector<int> wrong(kThreads, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const std::size_t which = static_cast<std::size_t>(t) % lines.size();
      Data data(parse_case(lines[which]));
      GuardedWorkspace workspace(plans[which].workspace_bytes(), host_memory());
      for (int n = 0; n < kRounds; ++n) {
        run(plans[which], data.prepare(), workspace.view());
        wrong[t] += result(data) != expected[which];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(kThreads, 0));
}

// Engines call from their own parallel loops; the bits are those of a lone run.
TEST_P(State, InsideACallersParallelRegion) {
  const Case spec = parse_case(kMixed);
  Data alone(spec);
  const Plan plan = plan_of(alone, 3);
  run_plan(plan, alone);
  const auto expected = bits(alone.operands().out);
  constexpr int kCallers = 3;
  std::vector<int> callers(kCallers, 0), wrong(kCallers, 0);
#pragma omp parallel num_threads(kCallers)
  {
    const int caller = omp_get_thread_num();
    callers[caller] = omp_get_num_threads();
    Data data(spec);
    run_plan(plan, data);
    wrong[caller] = bits(data.operands().out) != expected;
  }
  EXPECT_EQ(callers, std::vector<int>(kCallers, kCallers));
  EXPECT_EQ(wrong, std::vector<int>(kCallers, 0));
}

// The environment fills what the options leave open, for any number of callers at once.
TEST(Environment, IsReadByManyThreads) {
  setenv("MSA_BACKEND", "reference", 1);
  constexpr int kThreads = 6, kRounds = 100;
  const Problem problem = problem_of(parse_case("op=dense heads=4/2 dim=32 lens=3:40"));
  std::vector<int> wrong(kThreads, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int n = 0; n < kRounds; ++n) wrong[t] += make_plan(problem).backend() != "reference";
    });
  }
  for (std::thread& thread : threads) thread.join();
  unsetenv("MSA_BACKEND");
  EXPECT_EQ(wrong, std::vector<int>(kThreads, 0));
}

MSA_FOR_ALL_TARGETS(State);

}  // namespace
}  // namespace msa::testkit
