// SPDX-License-Identifier: MIT
// Where a tensor lies in memory, and whether two of them share a byte. Knows shapes and strides
// only, never reads data. The tensors have non-negative strides and extents that fit the address
// space.
#pragma once

#include <cstdint>

#include "msa/tensor.h"

namespace msa::core {

/// Elements of the tensor, 0 when any extent is 0; false when the product does not fit.
bool element_count(const Tensor& tensor, std::int64_t& count);

/// Bytes from the first element to the end of the last one; false when that leaves the address
/// space. Empty tensors: 0.
bool byte_extent(const Tensor& tensor, std::int64_t& bytes);

/// Whether two different indices may reach the same element. Exact for views of nested loops (every
/// view that slicing, transposing and reshaping make); stranger interleavings count as overlapping.
bool overlaps_itself(const Tensor& tensor);

/// Whether the two may share a byte. Views that differ by where they lie inside a common stride (K
/// and V packed in one row, two slices of one buffer) are told apart; what cannot be proved
/// disjoint counts as overlapping.
bool overlap(const Tensor& a, const Tensor& b);

}  // namespace msa::core
