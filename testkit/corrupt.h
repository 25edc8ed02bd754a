// SPDX-License-Identifier: MIT
// Faults in the contents of a call's index tensors: each one that a case can ask for makes the call
// illegal.
#pragma once

#include "testkit/case.h"
#include "testkit/operands.h"

namespace msa::testkit {

/// Plants the case's fault. Throws CaseError where the case has nothing to spoil, so that no fault
/// is lost unnoticed.
void corrupt(const Case& spec, Problem& problem, Operands& operands);

}  // namespace msa::testkit
