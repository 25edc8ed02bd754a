// SPDX-License-Identifier: MIT
// Which rows of a call are compared: all of them, or a sample where the oracle would take too long.
#pragma once

#include <cstdint>
#include <vector>

#include "testkit/findings.h"
#include "testkit/operands.h"

namespace msa::testkit {

/// Every row of the call; those behind the last request are padding.
std::vector<CallRow> all_rows(const std::vector<Request>& requests, std::int64_t rows);

/// The last row, the first, and others at random: late rows see most.
std::vector<CallRow> sample(const std::vector<CallRow>& rows, std::int64_t count,
                            std::uint64_t seed);

/// Query rows of a call, padding included.
std::int64_t num_rows(const Operands& operands);

/// Multiply-adds that the operation needs on its visible (and listed) keys.
double work_of(const Problem& problem, const Operands& operands);

}  // namespace msa::testkit
