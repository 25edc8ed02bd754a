// SPDX-License-Identifier: MIT
// Which (row, KV head) pairs are to be computed again. Every CTA reads the bits of all pairs and
// takes each gridDim.x-th of those that are set; neighbours, which list much the same blocks, run
// at the same time.
#pragma once

#include "cuda/common/warp.cuh"
#include "cuda/geometry.cuh"

namespace msa::cuda::common::attend {

/// The set bits of a CTA, found by every warp for itself. Keeps three numbers alone: registers are
/// few.
class SuspectFinder {
 public:
  __device__ __forceinline__ SuspectFinder() : mine_(static_cast<int>(blockIdx.x)) {}

  /// The next pair below `pairs`, or -1.
  __device__ __forceinline__ std::int64_t next(const Suspects& suspects, std::int64_t pairs,
                                               int lane) {
    const auto words = static_cast<int>(ceil_div(pairs, 32));
#pragma unroll 1
    for (; first_ < words; first_ += 32) {
      const unsigned bits = first_ + lane < words ? suspects.pairs[first_ + lane] : 0;
      // Set bits up to the end of this lane's word.
      const int behind = warp::inclusive_sum(__popc(bits), lane);
      const unsigned owners = __ballot_sync(kAllLanes, mine_ < before_ + behind);
      if (owners != 0) {
        const int owner = __ffs(static_cast<int>(owners)) - 1;
        const int rank = mine_ - before_ - __shfl_sync(kAllLanes, behind - __popc(bits), owner);
        mine_ += static_cast<int>(gridDim.x);
        return (std::int64_t{first_} + owner) * 32 +
               __fns(__shfl_sync(kAllLanes, bits, owner), 0, rank + 1);
      }
      before_ += __shfl_sync(kAllLanes, behind, 31);
    }
    return -1;
  }

 private:
  int first_ = 0;   // word that a search begins with, a multiple of 32
  int before_ = 0;  // set bits of the words before it; pairs are fewer than 2^31
  int mine_;        // number among all set bits of what this CTA takes next
};

}  // namespace msa::cuda::common::attend
