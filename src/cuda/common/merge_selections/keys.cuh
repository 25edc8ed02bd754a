// SPDX-License-Identifier: MIT
// Candidates of one row as keys whose order is that of preference, and the best of them, by a warp.
#pragma once

#include <cstdint>

#include "cuda/common/topk/row_topk.cuh"
#include "cuda/common/warp.cuh"

namespace msa::cuda::common::merge_selections {

// Score and id of a candidate in one number: the larger key is the better candidate. No key is 0,
// and keys of different ids differ.
using Key = std::uint64_t;

__device__ __forceinline__ Key make_key(float score, int id) {
  return static_cast<Key>(ordered(score)) << 32 | ~static_cast<std::uint32_t>(id);
}
__device__ __forceinline__ int id_of(Key key) {
  return static_cast<int>(~static_cast<std::uint32_t>(key));
}
__device__ __forceinline__ float score_of(Key key) {
  return unordered(static_cast<std::uint32_t>(key >> 32));
}

/// The largest key that at least k of `count` > k keys reach.
__device__ __forceinline__ Key kth_key(const Key* keys, int count, int k, int lane) {
  Key kth = 0;
  for (int bit = 63; bit >= 0; --bit) {
    const Key trial = kth | Key{1} << bit;
    int reach = 0;
    for (int i = lane; i < count; i += 32) reach += keys[i] >= trial ? 1 : 0;
    reach = __reduce_add_sync(kAllLanes, reach);
    if (reach < k) continue;
    kth = trial;
    if (reach == k) break;
  }
  return kth;
}

/// Moves the k best keys to the front. A key never moves up, so a round writes only where it or one
/// before it has read.
__device__ __forceinline__ void keep_best(Key* keys, int count, int k, int lane) {
  const Key kth = kth_key(keys, count, k, lane);
  int kept = 0;
  for (int first = 0; first < count; first += 32) {
    const Key key = first + lane < count ? keys[first + lane] : 0;
    const unsigned lanes = __ballot_sync(kAllLanes, key >= kth);
    const int slot = kept + __popc(lanes & lanes_below(lane));
    __syncwarp();
    if (key >= kth && slot < k) keys[slot] = key;  // equal keys are the caller's fault
    kept += __popc(lanes);
  }
  __syncwarp();
}

}  // namespace msa::cuda::common::merge_selections
