// SPDX-License-Identifier: MIT
// The block ids that a case gives to sparse_attention and invert_selection, row by row.
#pragma once

#include <cstdint>
#include <vector>

#include "testkit/case.h"
#include "testkit/requests.h"

namespace msa::testkit {

/// One past the largest block id that a list of this request may hold.
std::int64_t legal_blocks(const Request& request);

/// The list of query row i: ids without the -1 tail, in the case's order, at most topk.
std::vector<std::int32_t> block_list(const Case& spec, const Request& request, std::int64_t i,
                                     std::int64_t head);

/// Mean number of distinct blocks that 8 neighbouring queries of one request and head list (over
/// whole groups of 8).
double blocks_per_8(const Tensor& block_ids, const Batch& batch);

}  // namespace msa::testkit
