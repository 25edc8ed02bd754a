// SPDX-License-Identifier: MIT
// Reject or correct: any call that the public API can be given either fails with a typed error and
// leaves its outputs as they were, or matches the oracle.
#include <stdexcept>

#include "driver.h"
#include "spoil.h"
#include "testkit/generate.h"

namespace msa::fuzz {

namespace {

using namespace testkit;

[[noreturn]] void fail(const std::string& text) { throw std::runtime_error(text); }

/// A call whose contents are good or spoiled as the case says.
Verdict check_case(const Case& spec, const Options& under_test, CaseMemory& memory) {
  const Outcome outcome = verify(spec, {.under_test = under_test, .repeats = 1, .memory = &memory});
  if (outcome.result == Result::Rejected) return Verdict::Rejected;
  if (outcome.result == Result::Passed) return Verdict::Passed;
  if (outcome.result == Result::Unmade && spec.corrupt != Corrupt::None) return Verdict::Skipped;
  fail(outcome.repro + "\n  " + outcome.reason);
}

/// A good call with one argument made illegal.
Verdict check_spoiled(Choices& choices, Case spec, const Options& under_test) {
  spec.corrupt = Corrupt::None;
  spec.in_place = false;
  Data data(spec);
  Problem problem = data.problem();
  problem.options = under_test;
  if (!supports(problem).supported) return Verdict::Rejected;
  const Plan plan = make_plan(problem);
  GuardedWorkspace memory(plan.workspace_bytes(), host_memory());
  Workspace workspace = memory.view();
  testkit::Operands operands = data.prepare();
  const std::string how = spoil(choices, operands, workspace);
  if (how.empty()) return Verdict::Skipped;
  const std::string story = to_line(spec) + "\n  " + how + ": ";
  try {
    run(plan, operands, workspace);
  } catch (const Error& error) {
    const bool typed = error.code() == ErrorCode::InvalidArgument ||
                       error.code() == ErrorCode::InvalidContent ||
                       error.code() == ErrorCode::Workspace;
    if (!typed || error.argument().empty()) fail(story + "an error of no use: " + error.what());
    const std::string touched = data.touched();
    if (!touched.empty()) fail(story + "rejected, but " + touched);
    if (!memory.guards_intact()) fail(story + "the workspace's red zone was written");
    return Verdict::Passed;
  }
  fail(story + "accepted");
}

Verdict target(Choices& choices, const Options& under_test, CaseMemory& memory) {
  const bool spoiled = choices.one_in(3);
  const Case spec = draw_case(choices);
  return spoiled ? check_spoiled(choices, spec, under_test) : check_case(spec, under_test, memory);
}

}  // namespace

}  // namespace msa::fuzz

int main(int argc, char** argv) { return msa::fuzz::drive(argc, argv, msa::fuzz::target); }
