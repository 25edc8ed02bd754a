// SPDX-License-Identifier: MIT
// A case over ranks, one after the other in this process: shards, candidates, merges, by the
// library's own operations. What comes out stands in the outputs of the whole call, so that it is
// compared as that is.
#pragma once

#include "testkit/case.h"
#include "testkit/operands.h"

namespace msa::testkit {

/// Throws CaseError where the case is none that shards can run.
void expect_rankable(const Case& spec);

/// Runs select, sparse, msa and dense over spec.ranks shards. Operands in host memory.
void run_over_ranks(const Case& spec, const Problem& problem, const Operands& operands);

}  // namespace msa::testkit
