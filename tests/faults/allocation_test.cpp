// SPDX-License-Identifier: MIT
// run allocates nothing; the one-call forms turn a failed allocation into Error OutOfMemory, leak
// nothing and leave the outputs as they were.
#include <gtest/gtest.h>

#include <cstdio>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "allocations.h"
#include "testkit/generate.h"
#include "testkit/verify.h"

namespace msa::testkit {
namespace {

const std::vector<std::string> kCases{
    "op=dense heads=4/2 dim=32 lens=20:90,3:33 page=16 lse=1",
    "op=dense heads=4/2 dim=32 block=16 lens=20:90 block_max=1",
    "op=scores heads=2/2 dim=32 block=16 lens=20:90",
    "op=topk heads=2/2 block=16 topk=4 lens=20:200 chosen=1",
    "op=select heads=2/2 dim=32 block=16 topk=4 lens=20:200,1:90 chosen=1",
    "op=select heads=2/2 dim=32 block=16 topk=4 lens=20:900,1:9000 filter=1 page=16 chosen=1",
    "op=sparse heads=4/2 dim=32 block=16 topk=4 lens=20:200,1:90 page=16 order=shuffled lse=1",
    "op=sparse heads=4/2 dim=32 block=16 topk=4 lens=20:200,1:90 hostile=nan_v lse=1",
    "op=sparse heads=4/2 dim=32 block=16 topk=4 lens=20:200 page=16 hostile=nan_v kv=e4m3/page",
    "op=dense heads=4/2 dim=32 lens=20:90,1:300 kv=e4m3/token lse=1",
    "op=msa heads=4/2 dim=32 block=16 topk=4 lens=20:200,1:90 page=16 lse=1",
    "op=merge_states heads=2/2 dim=32 lens=20:0 parts=3 lse=1",
    "op=merge_selections heads=2/2 topk=4 lens=20:0 parts=3 chosen=1",
    "op=invert heads=2/2 block=16 topk=4 lens=20:200 order=shuffled",
};

std::vector<Options> available() {
  std::vector<Options> all{{.backend = "reference"}};
  for (const IsaInfo& isa : isas_of("cpu")) {
    if (isa.available) {
      all.push_back({.backend = "cpu", .isa = isa.name});
    } else {
      std::printf("not run: %s: %s\n", isa.name.c_str(), isa.reason.c_str());
    }
  }
  return all;
}

TEST(Allocation, RunAllocatesNothing) {
  for (const Options& options : available()) {
    for (const std::string& line : kCases) {
      Data data(parse_case(line));
      Problem problem = data.problem();
      problem.options = options;
      const Plan plan = make_plan(problem);
      GuardedWorkspace workspace(plan.workspace_bytes(), host_memory());
      const Operands operands = data.prepare();
      run(plan, operands, workspace.view());  // the first run may start threads
      const long before = faults::allocations.load();
      run(plan, operands, workspace.view());
      EXPECT_EQ(faults::allocations.load() - before, 0)
          << options.backend << " " << options.isa << " " << line;
    }
  }
}

/// Everything that plans or tells, for one problem.
const std::vector<std::function<void(const Problem&, const Data&, const Settings&)>> kCalls{
    [](const Problem& p, const Data&, const Settings&) { make_plan(p); },
    [](const Problem& p, const Data&, const Settings&) { supports(p); },
    [](const Problem& p, const Data&, const Settings&) { make_plan(p).to_string(); },
    [](const Problem&, const Data& data, const Settings& settings) {
      problem_of(data.spec().op, data.operands(), settings);
    },
    [](const Problem&, const Data&, const Settings&) { build_info(); },
};

TEST(Allocation, PlanningFailsAsAnErrorToo) {
  constexpr long kMost = 1000;
  for (const std::string& line : kCases) {
    Data data(parse_case(line));
    Problem problem = data.problem();
    problem.options.backend = "cpu";
    Settings settings = data.settings();
    settings.options = problem.options;
    for (std::size_t call = 0; call < kCalls.size(); ++call) {
      SCOPED_TRACE("call " + std::to_string(call) + " of " + line);
      kCalls[call](problem, data, settings);  // fills caches of the system
      bool failed = true;
      for (long n = 0; n < kMost && failed; ++n) {
        const long live = faults::live.load();
        failed = false;
        faults::fail_at.store(faults::allocations.load() + n);
        try {
          kCalls[call](problem, data, settings);
        } catch (const Error& error) {
          failed = true;
          EXPECT_EQ(error.code(), ErrorCode::OutOfMemory) << "allocation " << n;
        } catch (const std::bad_alloc&) {
          failed = true;
          ADD_FAILURE() << "allocation " << n << " ended in std::bad_alloc";
        }
        faults::fail_at.store(-1);
        EXPECT_EQ(faults::live.load(), live) << "allocation " << n << " leaked";
      }
      EXPECT_FALSE(failed) << "more than " << kMost << " allocations";
    }
  }
}

/// Makes allocation `n` of the call fail. False: the call needed fewer and succeeded.
bool fails_cleanly_at(long n, Op op, Data& data, const Settings& settings) {
  const Operands operands = data.prepare();
  const long live = faults::live.load();
  bool failed = false;
  {
    faults::fail_at.store(faults::allocations.load() + n);
    try {
      run_once(op, operands, settings);
    } catch (const Error& error) {
      faults::fail_at.store(-1);
      failed = true;
      EXPECT_EQ(error.code(), ErrorCode::OutOfMemory) << "allocation " << n << ": " << error.what();
    } catch (const std::bad_alloc&) {
      faults::fail_at.store(-1);
      failed = true;
      ADD_FAILURE() << "allocation " << n << " ended in std::bad_alloc";
    }
    faults::fail_at.store(-1);
  }
  EXPECT_EQ(faults::live.load(), live) << "allocation " << n << " leaked";
  if (failed) {
    EXPECT_EQ(data.touched(), "") << "allocation " << n;
  }
  return failed;
}

TEST(Allocation, EveryFailureIsAnErrorAndLeavesNothing) {
  constexpr long kMost = 1000;
  for (const Options& options : available()) {
    for (const std::string& line : kCases) {
      SCOPED_TRACE(options.backend + " " + options.isa + " " + line);
      const Case spec = parse_case(line);
      Data data(spec);
      Settings settings = data.settings();
      settings.options = options;
      run_once(spec.op, data.prepare(), settings);  // starts threads, fills caches of the system
      long n = 0;
      while (n < kMost && fails_cleanly_at(n, spec.op, data, settings)) ++n;
      EXPECT_GT(n, 0) << "a one-call form that allocates nothing cannot have been tested";
      EXPECT_LT(n, kMost);
    }
  }
}

}  // namespace
}  // namespace msa::testkit
