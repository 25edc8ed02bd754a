// SPDX-License-Identifier: MIT
// What the contract says of the ids in a given block list: the valid prefix ends at the first -1,
// ids that no request can have are faults, legal ones that lie elsewhere or are not visible add
// nothing.
#pragma once

#include <cstdint>

#include "cuda/common/number.cuh"
#include "cuda/geometry.cuh"

namespace msa::cuda::common {

__device__ __forceinline__ unsigned lanes_below(int lane) { return (1u << lane) - 1; }

/// Whether the id of this lane, the lane's place in the list, stands in front of the first -1 of
/// these lanes. `stops`: the ballot of id == -1.
__device__ __forceinline__ bool in_prefix(int id, unsigned stops, int lane) {
  return id != -1 && (stops & lanes_below(lane)) == 0;
}

/// One id of a valid prefix.
struct ListedBlock {
  int block;   // local to the request; -1: adds nothing
  bool fault;  // an id that no request can have
};

/// Reads ids for one request: `blocks` of it count (those that exist, or that a row sees).
struct ListReader {
  std::int64_t first;  // global id of local block 0
  std::int64_t legal;  // ids end here
  std::int64_t blocks;

  __device__ __forceinline__ ListReader(const RequestRecord& request, int block_size,
                                        std::int64_t counted)
      : first(first_block(request, block_size)),
        legal(legal_blocks(request, block_size)),
        blocks(counted) {}

  __device__ __forceinline__ ListedBlock read(int id, bool listed) const {
    const bool fault = listed && (id < 0 || id >= legal);
    const std::int64_t block = id - first;
    const bool counts = listed && !fault && block >= 0 && block < blocks;
    return {counts ? static_cast<int>(block) : -1, fault};
  }
};

}  // namespace msa::cuda::common
