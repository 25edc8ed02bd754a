// SPDX-License-Identifier: MIT
// Faults in the contents of a call's index tensors: each one that a case can ask for makes the call
// illegal.
#pragma once

#include <cstdint>

#include "testkit/case.h"
#include "testkit/operands.h"

namespace msa::testkit {

/// Where a fault lies, as the status word of a GPU names it, and the argument that an error must
/// name.
struct PlantedFault {
  const char* argument = "";
  std::int64_t request = 0;
  std::int64_t row = -1;         // query row of the request; -1: the fault is the request's
  std::int64_t page_begin = -1;  // first key of a page that is not there, the request's last one
  // A GPU need not meet it: a page whose keys no row reads, or an id listed twice.
  bool may_pass = false;
};

/// Plants the case's fault. Throws CaseError where the case has nothing to spoil, so that no fault
/// is lost unnoticed.
PlantedFault corrupt(const Case& spec, Problem& problem, Operands& operands);

}  // namespace msa::testkit
