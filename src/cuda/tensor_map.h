// SPDX-License-Identifier: MIT
// Tensor maps for the copy engine, made on the host for every call and passed to kernels by value
// (__grid_constant__). Keys and values get one map for ragged rows and pages alike: (dim, token,
// head, page).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "msa/tensor.h"

namespace msa::cuda {

/// Boxes of `box_tokens` x 128 bytes of k, v or index keys, of e2m1 of 64 bytes, which are a row:
/// coordinates (item, token in its page or ragged row, head, page). Ragged rows are one page.
/// Coordinates outside read zeros. Throws InvalidArgument naming `argument` where the copy engine
/// cannot take the tensor (address or strides that are no multiples of 16 bytes).
CUtensorMap make_key_map(const Tensor& keys, int box_tokens, const char* argument);

/// Boxes of `box_tokens` whole rows, without swizzle; else like make_key_map.
CUtensorMap make_row_map(const Tensor& keys, int box_tokens, const char* argument);

/// Boxes of `box_tokens` x `box_heads` x 64 items of q [T, Hq, D]: coordinates (item, head in its
/// group, token, group). A box with all heads of a group lies in shared memory as box_tokens *
/// box_heads rows.
CUtensorMap make_query_map(const Tensor& q, std::int64_t heads_kv, int box_heads, int box_tokens,
                           const char* argument);

/// Why the copy engine cannot take the tensor, or an empty string.
const char* copy_engine_refuses(const Tensor& tensor);

}  // namespace msa::cuda
