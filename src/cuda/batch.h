// SPDX-License-Identifier: MIT
// From the tensors of a call to the plain structs that kernels take.
#pragma once

#include "core/call.h"
#include "cuda/params.h"

namespace msa::cuda {

/// `keys`: k or index_k, or a tensor that was not given where the operation takes no keys.
BatchParams make_batch(const Problem& problem, const core::Call& call, const Tensor& keys,
                       StatusWord* status);

IntVector make_int_vector(const Tensor& tensor, int dim);

/// Blocks of the longest request that the problem allows.
inline std::int64_t blocks_of(const Problem& problem) {
  return (problem.bounds.max_seqlen_k + problem.selection.block_size - 1) /
         problem.selection.block_size;
}

}  // namespace msa::cuda
