// SPDX-License-Identifier: MIT
// The first tier of checks: what can be told from metadata, on every call and every backend. Throws
// msa::Error that names the argument, what was expected and what was given; nothing has been
// written by then.
#pragma once

#include "core/call.h"

namespace msa::core {

/// Is the problem legal at all? Bounds, divisibility, dtypes, init + local <= topk, overflow.
void validate_problem(const Problem& problem);

/// Do the tensors fit the planned problem? Rank, dtype, device, shape within bounds, strides,
/// alignment of elements, null pointers, extents that overflow the address space, outputs that
/// overlap themselves, each other or an input, tensors that the plan does not expect or misses,
/// workspace size and alignment.
void validate_call(const Problem& problem, const Call& call, Workspace workspace,
                   std::size_t workspace_bytes);

/// Of the generic form: rejects a tensor that the operation does not take.
void expect_no_strays(Op op, const Operands& operands);

}  // namespace msa::core
