// SPDX-License-Identifier: MIT
// One program, two ways: with --cases it runs that many generated cases and reports; otherwise it
// is a libFuzzer target.
#pragma once

#include <string>

#include "testkit/case_memory.h"
#include "testkit/draw.h"
#include "testkit/verify.h"

namespace msa::fuzz {

using testkit::Choices;

enum class Verdict { Passed, Rejected, Skipped };

/// What a fuzz target does with one sequence of choices. Throws std::runtime_error with the whole
/// story of a failure. `memory` is of the case that these choices draw, whoever is under test.
using Target = Verdict (*)(Choices& choices, const Options& under_test,
                           testkit::CaseMemory& memory);

int drive(int argc, char** argv, Target target);

}  // namespace msa::fuzz
