// SPDX-License-Identifier: MIT
// Instruction sets against each other: every one that the machine has serves the same problems,
// gives the oracle's answer, and, where scores are exact, the very same selection.
#include <stdexcept>
#include <vector>

#include "driver.h"
#include "testkit/generate.h"
#include "testkit/requests.h"

namespace msa::fuzz {

namespace {

using namespace testkit;

std::vector<std::int32_t> selection(const Case& spec, const Options& under_test) {
  Data data(spec);
  Problem problem = data.problem();
  problem.options = under_test;
  const Plan plan = make_plan(problem);
  GuardedWorkspace workspace(plan.workspace_bytes(), host_memory());
  run(plan, data.prepare(), workspace.view());
  const Tensor& ids = data.operands().block_ids;
  std::vector<std::int32_t> all;
  for (std::int64_t i = 0; ids && i < ids.shape[0]; ++i) {
    for (std::int64_t h = 0; h < ids.shape[1]; ++h) {
      for (std::int64_t s = 0; s < ids.shape[2]; ++s) all.push_back(int_at(ids, i, h, s));
    }
  }
  return all;
}

Verdict target(Choices& choices, const Options&, CaseMemory& memory) {
  const Case spec = draw_case(choices, {.faults = false});
  Verdict verdict = Verdict::Skipped;
  std::vector<std::int32_t> first;
  std::string first_isa;
  for (const IsaInfo& isa : isas_of("cpu")) {
    if (!isa.available) continue;
    const Options options{.backend = "cpu", .isa = isa.name};
    const Outcome outcome = verify(spec, {.under_test = options, .repeats = 1, .memory = &memory});
    if (outcome.result == Result::Failed) {
      throw std::runtime_error(outcome.repro + "\n  " + outcome.reason);
    }
    const Verdict own = outcome.result == Result::Passed ? Verdict::Passed : Verdict::Rejected;
    if (first_isa.empty()) {
      first_isa = isa.name;
      verdict = own;
    }
    if (own != verdict) {
      throw std::runtime_error(to_line(spec) + ": " + isa.name + " and " + first_isa +
                               " do not serve the same problems");
    }
    if (own == Verdict::Rejected) continue;
    std::vector<std::int32_t> ids;
    if (has_exact_scores(spec)) ids = selection(spec, options);
    if (first_isa == isa.name) {
      first = ids;
    } else if (ids != first) {
      throw std::runtime_error(to_line(spec) + ": " + isa.name + " and " + first_isa +
                               " select different blocks");
    }
  }
  return verdict;
}

}  // namespace

}  // namespace msa::fuzz

int main(int argc, char** argv) { return msa::fuzz::drive(argc, argv, msa::fuzz::target); }
