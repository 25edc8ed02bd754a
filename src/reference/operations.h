// SPDX-License-Identifier: MIT
// The operations of the oracle, each a loop over requests, rows and heads around the steps. Calls
// are validated.
#pragma once

#include <cstddef>
#include <span>

#include "core/call.h"
#include "reference/steps.h"

namespace msa::reference {

/// Working memory of one row, cut from the workspace.
struct Scratch {
  std::span<double> scores{};         // of the keys that a row attends to
  std::span<Candidate> candidates{};  // visible blocks of a row
};

std::size_t workspace_bytes(const Problem& problem);
Scratch cut(const Problem& problem, Workspace workspace);

void run(const Problem& problem, const core::Call& call, const Scratch& scratch);

}  // namespace msa::reference
