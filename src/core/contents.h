// SPDX-License-Identifier: MIT
// The second tier of checks, for tensors in host memory: what index tensors hold. Used by the
// CPU-side backends before they write anything, and to read a request's numbers in one place.
#pragma once

#include <cstdint>

#include "core/call.h"
#include "core/geometry.h"

namespace msa::core {

/// Rows of q, index_q, scores, block ids or parts: whichever the operation takes.
std::int64_t num_query_rows(const Call& call);

/// Number of requests of the call (shape of cu_seqlens_q or seqlens_k; 1 where neither is needed).
std::int64_t num_requests(const Call& call);

/// Request b of the call. `k_begin` is the running start of ragged keys where cu_seqlens_k is not
/// given: the sum of seqlens_k of the requests before b (callers that walk all requests keep it
/// themselves).
Request read_request(const Problem& problem, const Call& call, std::int64_t b,
                     std::int64_t k_begin);

/// quantize_index: the position of request b from which on its keys are new.
std::int64_t first_new_key(const Call& call, std::int64_t b);

/// Checks everything that the operation reads: lengths, starts, offsets, page ids of pages in use,
/// block ids (legal and unique up to the first -1), ids of merge parts. Throws
/// ErrorCode::InvalidContent. Needs no memory of its own.
void validate_contents(const Problem& problem, const Call& call);

}  // namespace msa::core
