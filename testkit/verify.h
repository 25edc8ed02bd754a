// SPDX-License-Identifier: MIT
// One case from text to verdict: generate, run on the backend under test, compare with the oracle.
// Tests, fuzzers, benchmarks and the command-line tool all come through here.
#pragma once

#include <string>
#include <vector>

#include "msa/info.h"
#include "testkit/case.h"
#include "testkit/case_memory.h"
#include "testkit/compare.h"
#include "testkit/memory.h"

namespace msa::testkit {

enum class Result : std::uint8_t {
  Passed,
  Failed,
  Rejected,  // no backend serves it (or not the one under test): the reason says why
  Unmade,  // the case asks for what cannot be made, such as a fault where there is no place for it
};

struct Outcome {
  Result result = Result::Passed;
  std::string reason{};          // of a failure or a rejection
  std::string repro{};           // the command that repeats it
  std::string backend{}, isa{};  // that ran
  Report report{};               // of the comparison, where there was one
};

struct VerifyOptions {
  Options under_test{};          // backend, instruction set, threads
  MemorySpace* space = nullptr;  // left out: the host
  int repeats = 2;               // runs in all; each must give the same bits
  CompareOptions compare{};      // exact_scores is set from the case, its memory from `memory`
  CaseMemory* memory = nullptr;  // of this very case: what its other runs have worked out
};

Outcome verify(const Case& spec, const VerifyOptions& options);

/// The command that repeats a case: `msa verify --backend cpu --isa avx2 --case '...'`.
std::string repro_command(const Case& spec, const Options& under_test);

/// Whether errors of the case's rows and heads are independent of each other, and roundings to 16
/// bits large enough to hide every other error: random vectors and softmax weights that differ.
bool has_independent_errors(const Case& spec);

/// Whether keys are nearer to each other than to 0, and dq's errors those of its 16-bit factors.
bool has_keys_alike(const Case& spec);

/// Whether the regime's index vectors have exact dot products.
bool has_exact_scores(const Case& spec);

/// Instruction sets of a backend, each with whether this machine has it.
std::vector<IsaInfo> isas_of(const std::string& backend);

}  // namespace msa::testkit
