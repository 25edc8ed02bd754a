// SPDX-License-Identifier: MIT
// Problems whose unused fields hold what no used one may: the contract says that they are ignored.
#pragma once

#include "msa/problem.h"

namespace msa::testkit {

/// The same problem, with nonsense in every field that its operation does not use.
Problem with_nonsense(const Problem& problem);

}  // namespace msa::testkit
