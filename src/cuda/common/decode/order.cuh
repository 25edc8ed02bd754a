// SPDX-License-Identifier: MIT
// What blocks are ordered by. Scoring for a selection leaves orders in the scratch, not scores:
// they say what a row sees and what is forced, too.
#pragma once

#include <cstdint>

#include "cuda/common/number.cuh"
#include "cuda/geometry.cuh"

namespace msa::cuda::common::decode {

/// No finite or infinite score reaches kForced (common::ordered).
inline constexpr std::uint32_t kForced = 0xffffffffu;
inline constexpr std::uint32_t kNoBlock = 0;

__device__ __forceinline__ float score_of(std::uint32_t order) {
  return order == kForced ? -common::kMinusInf : common::unordered(order);
}

__device__ __forceinline__ unsigned long long select_key(std::uint32_t order, int block) {
  return (static_cast<unsigned long long>(order) << 32) |
         (0xffffffffu - static_cast<std::uint32_t>(block));
}

__device__ __forceinline__ int select_block(unsigned long long key) {
  return static_cast<int>(0xffffffffu - static_cast<std::uint32_t>(key));
}

/// Of a visible block that is not forced.
__device__ __forceinline__ std::uint32_t order_of(float score) {
  return max(common::ordered(score), kNoBlock + 1);
}

/// The blocks of one row, local to the request.
struct RowBlocks {
  std::int64_t first;  // global id of block 0
  int visible;         // blocks that the row sees
  int forced_before;   // blocks below this one are forced,
  int forced_from;     // and blocks from this one on

  __device__ __forceinline__ std::uint32_t order(float score, int block) const {
    if (block >= visible) return kNoBlock;
    if (block < forced_before || block >= forced_from) return kForced;
    return order_of(score);
  }
};

__device__ __forceinline__ RowBlocks row_blocks(const BatchParams& batch, const RequestRecord& r,
                                                int token) {
  const int shift = __ffs(batch.block_size) - 1;  // 64-bit divisions take long
  const std::int64_t last = last_position(r, token, batch.causal != 0);
  const int keys = visible_keys(r, token, batch.causal != 0);
  const std::int64_t first = r.key_offset >> shift;
  const std::int64_t recent = (last < 0 ? 0 : (last >> shift) + 1) - batch.local_blocks - first;
  return {.first = first,
          .visible = (keys + batch.block_size - 1) >> shift,
          .forced_before = static_cast<int>(clamp64(batch.init_blocks - first, 0, INT32_MAX)),
          .forced_from = static_cast<int>(clamp64(recent, 0, INT32_MAX))};
}

}  // namespace msa::cuda::common::decode
