// SPDX-License-Identifier: MIT
// The two rows of every tile that a consumer's thread has: `row` and the eighth behind it.
#pragma once

#include "cuda/sm90/attend/traits.cuh"
#include "cuda/sm90/tile/fragment.cuh"

namespace msa::cuda::sm90::attend {

/// Small groups have more than 32 tokens' worth of rows: no shift by 32 or more.
__host__ __device__ constexpr std::uint32_t bits_below(int n) {
  return n >= 32 ? ~0u : (1u << n) - 1;
}

template <class Traits>
struct OwnRows {
  __device__ __forceinline__ OwnRows(int consumer, int group)
      : warpgroup(consumer),
        thread(threadIdx.x & 127),
        row(warpgroup * 64 + fragment_row(thread)),
        token{row / group, (row + 8) / group} {}

  /// Keys that row r sees.
  __device__ __forceinline__ int visible(const Job& job, int r) const {
    return min(max(job.base + token[r], 0), job.limit);
  }

  /// Whether row r's token listed the block.
  __device__ __forceinline__ bool listed(const ListEntry& entry, int r) const {
    if constexpr (Traits::kUnion) {
      return (entry.tokens >> (token[r] & 31)) & 1;
    } else {
      return true;
    }
  }

  /// Tokens of the tile that have rows in this warpgroup, as bits of an entry.
  __device__ __forceinline__ std::uint32_t warpgroup_tokens(int group) const {
    const int first = warpgroup * 64 / group;
    const int end = (warpgroup * 64 + 63) / group + 1;
    static_assert(bits_below(0) == 0 && bits_below(31) == ~0u >> 1 && bits_below(128) == ~0u);
    return bits_below(end) & ~bits_below(first);
  }

  const int warpgroup;
  const int thread;  // in the warpgroup
  const int row;     // of the tile
  const int token[2];
};

}  // namespace msa::cuda::sm90::attend
