// SPDX-License-Identifier: MIT
// Attention of single (row, KV head) pairs, for those whose tile ended non-finite in the kernel
// that shares tiles between rows: there 0 * NaN leaks from one query's keys to its neighbours.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/common/attend/params.h"
#include "cuda/params.h"

namespace msa::cuda::mma::attend {

struct MendParams {
  common::attend::Params tiles{};  // what goes where, and the suspects; no tile of it
  Rows<const void> q{};
  KeyRows<const void> k{};  // as they are stored
  KeyRows<const void> v{};
  Lists lists{};  // of the union walk
  bool listed = false;
  int head_dim = 128;
};

/// `storage` of queries, `kv` of keys and values: as queries, or E4m3.
void launch_mend(Storage storage, Storage kv, const MendParams& params, int ctas,
                 cudaStream_t stream);

}  // namespace msa::cuda::mma::attend
