// SPDX-License-Identifier: MIT
// The k best of a row by one warp: higher score first, then lower index. A lane holds up to 32
// scores of a chunk; the k-th largest of the lanes' (or lane groups') maxima bounds the result from
// below, and the few scores that reach it are appended in index order to a list of which the k best
// are kept. No histogram and no digit passes: ties cost what distinct scores cost. NaN counts as
// -inf.
#pragma once

#include <cstdint>

#include "cuda/common/number.cuh"
#include "cuda/common/warp.cuh"

namespace msa::cuda::common::topk {

/// Sizes for lists of up to kMaxK entries.
template <int kMaxK>
struct ListTraits {
  static_assert(kMaxK == 16 || kMaxK == 32 || kMaxK == 64, "lists of 16, 32 or 64");
  // With twice as many groups as entries the bound is near the median maximum, which some 1.4 k
  // random scores reach.
  static constexpr int kGroups = kMaxK / 16;
  static constexpr int kCandidates = 4 * kMaxK;  // new ones taken at a time
  static constexpr int kUsual = 2 * kMaxK;       // more than these reach the bound: look for ties
  static constexpr int kEntries = kMaxK + kCandidates;
  static constexpr int kRounds = (kEntries + 31) / 32;  // entries of one lane
};

/// What a warp keeps in shared memory: entries in ascending order of their index.
template <int kMaxK>
struct ListStorage {
  std::uint32_t scores[ListTraits<kMaxK>::kEntries];  // ordered
  int indices[ListTraits<kMaxK>::kEntries];
};

/// This lane's scores of one chunk: x[i] is score base + 32 i + lane, -inf behind the row's end.
template <int kPerLane>
struct Chunk {
  static constexpr int kScores = 32 * kPerLane;
  float x[kPerLane];
  int base;
  int count;  // of the row

  /// Bit i: x[i] is a score of the row.
  __device__ __forceinline__ std::uint32_t held(int lane) const {
    const int rows = min(max((count - base - lane + 31) / 32, 0), kPerLane);
    return rows == 32 ? ~0u : (1u << rows) - 1;
  }
  /// Bit i: x[i] > bound.
  __device__ __forceinline__ std::uint32_t above(float bound) const {
    std::uint32_t mask = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) mask |= x[i] > bound ? 1u << i : 0u;
    return mask;
  }
  /// Bit i: x[i] is a score of the row and >= bound; NaN as -inf.
  __device__ __forceinline__ std::uint32_t at_least(float bound, int lane) const {
    if (bound == kMinusInf) return held(lane);
    std::uint32_t mask = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) mask |= x[i] >= bound ? 1u << i : 0u;
    return mask;
  }
};

template <int kPerLane, bool kUnitStride>
__device__ __forceinline__ void load_chunk(Chunk<kPerLane>& chunk, const float* row,
                                           std::int64_t stride, int lane) {
  constexpr int kGroup = 8;  // a group that lies inside the row needs no test for each score
  const int first = chunk.base + lane;
  const float* p = row + (kUnitStride ? first : first * stride);
#pragma unroll
  for (int g = 0; g < kPerLane; g += kGroup) {
    if (chunk.base + (g + kGroup) * 32 <= chunk.count) {
#pragma unroll
      for (int i = g; i < g + kGroup; ++i) chunk.x[i] = p[kUnitStride ? i * 32 : i * 32 * stride];
    } else {
#pragma unroll
      for (int i = g; i < g + kGroup; ++i) {
        chunk.x[i] = kMinusInf;
        if (first + i * 32 < chunk.count) chunk.x[i] = p[kUnitStride ? i * 32 : i * 32 * stride];
      }
    }
  }
}

/// Sorts one value a lane, largest in lane 0.
__device__ __forceinline__ std::uint32_t sort_lanes(std::uint32_t v, int lane) {
#pragma unroll
  for (int size = 2; size <= 32; size *= 2) {
#pragma unroll
    for (int step = size / 2; step > 0; step /= 2) {
      const std::uint32_t other = __shfl_xor_sync(kAllLanes, v, step);
      const bool larger = ((lane & size) == 0 || size == 32) == ((lane & step) == 0);
      v = larger ? max(v, other) : min(v, other);
    }
  }
  return v;
}

/// A u that at least k of the warp's values reach and at most k - 1 exceed, or one that exactly k
/// reach; 0 where fewer than k are above 0. `reach(u)` counts this lane's values that are >= u.
template <class Reach>
__device__ __forceinline__ std::uint32_t kth_by_bits(int k, Reach reach) {
  std::uint32_t u = 0;
#pragma unroll 1
  for (std::uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
    const int n = __reduce_add_sync(kAllLanes, reach(u | bit));
    if (n >= k) u |= bit;
    if (n == k) break;
  }
  return u;
}

template <int kValues>
__device__ __forceinline__ std::uint32_t kth_of(const std::uint32_t (&v)[kValues], int k,
                                                int lane) {
  if constexpr (kValues == 1) {
    return __shfl_sync(kAllLanes, sort_lanes(v[0], lane), k - 1);
  } else {
    return kth_by_bits(k, [&](std::uint32_t u) {
      int n = 0;
#pragma unroll
      for (int i = 0; i < kValues; ++i) n += v[i] >= u;
      return n;
    });
  }
}

/// A lower bound of the k-th best of the chunk: at least k scores reach it, or it is -inf.
template <int kGroups, int kPerLane>
__device__ __forceinline__ float bound_of_maxima(const Chunk<kPerLane>& chunk, int k, int lane) {
  constexpr int kPerGroup = kPerLane / kGroups;
  std::uint32_t maxima[kGroups];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    float m = chunk.x[g * kPerGroup];
#pragma unroll
    for (int i = 1; i < kPerGroup; ++i) m = fmaxf(m, chunk.x[g * kPerGroup + i]);
    maxima[g] = ordered(m);
  }
  return unordered(kth_of(maxima, k, lane));
}

/// The k-th best score of the chunk, or one that exactly k scores reach.
template <int kPerLane>
__device__ __forceinline__ float exact_bound(const Chunk<kPerLane>& chunk, int k) {
  constexpr std::uint32_t kOrderedInf = 0xff800000;
  return unordered(kth_by_bits(k, [&](std::uint32_t u) {
    const float score = u > kOrderedInf ? __int_as_float(0x7fffffff) : unordered(u);
    int n = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) n += chunk.x[i] >= score;
    return n;
  }));
}

__device__ __forceinline__ int warp_sum(int v) { return __reduce_add_sync(kAllLanes, v); }

/// Of the scores whose bit is set, the `want` of lowest index.
template <int kPerLane>
__device__ __forceinline__ std::uint32_t first_set(std::uint32_t mask, int want, int lane) {
  std::uint32_t kept = 0;
#pragma unroll 4
  for (int i = 0; i < kPerLane && want > 0; ++i) {
    const std::uint32_t lanes = __ballot_sync(kAllLanes, (mask >> i & 1) != 0);
    if (__popc(lanes & lanes_below(lane)) < want) kept |= mask & (1u << i);
    want -= __popc(lanes);
  }
  return kept;
}

/// Lane i's result: bit l is bit i of lane l.
__device__ __forceinline__ std::uint32_t transpose_bits(std::uint32_t v, int lane) {
  constexpr std::uint32_t kLow[5] = {0x0000ffff, 0x00ff00ff, 0x0f0f0f0f, 0x33333333, 0x55555555};
#pragma unroll
  for (int s = 0; s < 5; ++s) {
    const int step = 16 >> s;
    const bool upper = (lane & step) != 0;
    const std::uint32_t other = __shfl_xor_sync(kAllLanes, v, step);
    const std::uint32_t own = upper ? ~kLow[s] : kLow[s];
    v = (v & own) | ((upper ? other >> step : other << step) & ~own);
  }
  return v;
}

/// Appends the scores whose bit is set, ascending in their index.
template <int kMaxK, int kPerLane>
__device__ __forceinline__ void append(ListStorage<kMaxK>& list, int size, std::uint32_t take,
                                       const Chunk<kPerLane>& chunk, const float* row,
                                       std::int64_t stride, int lane) {
  if constexpr (kPerLane <= 16) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const bool taken = (take >> i & 1) != 0;
      const std::uint32_t lanes = __ballot_sync(kAllLanes, taken);
      const int at = size + __popc(lanes & lanes_below(lane));
      if (taken) {
        list.scores[at] = ordered(chunk.x[i]);
        list.indices[at] = chunk.base + i * 32 + lane;
      }
      size += __popc(lanes);
    }
  } else {
    // Lane i knows which lanes' scores of row i (of 32) to take. They are read again, as registers
    // have no run-time index.
    std::uint32_t lanes = transpose_bits(take, lane);
    int at = size + warp::inclusive_sum(__popc(lanes), lane) - __popc(lanes);
    const auto put = [&](int slot, int index) {
      list.scores[slot] = ordered(row[index * stride]);
      list.indices[slot] = index;
    };
    std::uint32_t rows = __ballot_sync(kAllLanes, lanes != 0);
    if (__reduce_max_sync(kAllLanes, __popc(lanes)) <= __popc(rows)) {
      for (; lanes != 0; lanes &= lanes - 1) {
        put(at++, chunk.base + lane * 32 + __ffs(lanes) - 1);
      }
      return;
    }
    // Ties come in whole rows: all lanes write one row after the other.
    for (; rows != 0; rows &= rows - 1) {
      const int r = __ffs(rows) - 1;
      const std::uint32_t in_row = __shfl_sync(kAllLanes, lanes, r);
      const int slot = __shfl_sync(kAllLanes, at, r) + __popc(in_row & lanes_below(lane));
      if ((in_row >> lane & 1) != 0) put(slot, chunk.base + r * 32 + lane);
    }
  }
}

/// Which of the warp's values are the k best: entries ascend with the round, then the lane; 0 is no
/// entry. Bit r of the result: v[r] is in.
template <int kRounds>
__device__ __forceinline__ std::uint32_t best_of(const std::uint32_t (&v)[kRounds], int k, int lane,
                                                 std::uint32_t& kth) {
  kth = kth_of(v, k, lane);
  int want = k;  // of those that equal the k-th
#pragma unroll
  for (int r = 0; r < kRounds; ++r) want -= __popc(__ballot_sync(kAllLanes, v[r] > kth));
  std::uint32_t kept = 0;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const std::uint32_t equal = __ballot_sync(kAllLanes, v[r] == kth && v[r] != 0);
    const bool first = __popc(equal & lanes_below(lane)) < want;
    if (v[r] > kth || (v[r] == kth && v[r] != 0 && first)) kept |= 1u << r;
    want -= __popc(equal);
  }
  return kept;
}

/// The kept ones of all lanes' entries, in their order, in front of the list; returns how many.
template <int kRounds, int kMaxK>
__device__ __forceinline__ int store_kept(ListStorage<kMaxK>& list,
                                          const std::uint32_t (&v)[kRounds],
                                          const int (&index)[kRounds], std::uint32_t kept,
                                          int lane) {
  __syncwarp();
  int at = 0;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const bool in = (kept >> r & 1) != 0;
    const std::uint32_t lanes = __ballot_sync(kAllLanes, in);
    const int slot = at + __popc(lanes & lanes_below(lane));
    if (in) {
      list.scores[slot] = v[r];
      list.indices[slot] = index[r];
    }
    at += __popc(lanes);
  }
  __syncwarp();
  return at;
}

/// Keeps the k best of `size` entries; returns how many and the k-th score.
template <int kRounds, int kMaxK>
__device__ __forceinline__ int keep_best(ListStorage<kMaxK>& list, int size, int k, int lane,
                                         float& last) {
  std::uint32_t v[kRounds];
  int index[kRounds];
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int e = r * 32 + lane;
    v[r] = e < size ? list.scores[e] : 0;
    index[r] = e < size ? list.indices[e] : 0;
  }
  std::uint32_t kth;
  const std::uint32_t kept = best_of(v, k, lane, kth);
  last = unordered(kth);
  return store_kept(list, v, index, kept, lane);
}

/// The scores of a chunk to look at closer, bit by bit: all that can be among the k best of the
/// chunk and exceed `last`, the k-th of a full list (of a list that is not full, all).
template <int kMaxK, int kPerLane>
__device__ __forceinline__ std::uint32_t candidates(const Chunk<kPerLane>& chunk, bool full,
                                                    float last, int k, int lane, int& total) {
  using Traits = ListTraits<kMaxK>;
  if (full) {
    const std::uint32_t take = chunk.above(last);
    total = warp_sum(__popc(take));
    if (total <= Traits::kCandidates) return take;
  }
  float bound = bound_of_maxima<Traits::kGroups>(chunk, k, lane);
  std::uint32_t take = chunk.at_least(bound, lane);
  total = warp_sum(__popc(take));
  if (total <= Traits::kUsual) return take;
  // Ties, or scores that sit in few lanes.
  std::uint32_t above = chunk.above(bound);
  int num_above = warp_sum(__popc(above));
  if (num_above > Traits::kCandidates) {
    bound = exact_bound(chunk, k);
    above = chunk.above(bound);
    take = chunk.at_least(bound, lane);
    num_above = warp_sum(__popc(above));
  }
  total = num_above;
  if (num_above >= k) return above;
  const std::uint32_t equal = first_set<kPerLane>(take & ~above, k - num_above, lane);
  total = num_above + warp_sum(__popc(equal));
  return above | equal;
}

/// The k best of row[0 .. count), chunks [first, end): in front of the list. Returns how many.
template <int kMaxK, bool kUnitStride, int kPerLane>
__device__ __forceinline__ int select_row(ListStorage<kMaxK>& list, const float* row,
                                          std::int64_t stride, int count, int k, int first, int end,
                                          int lane) {
  Chunk<kPerLane> chunk;
  int size = 0;
  float last = kMinusInf;
  if (k <= 0) return 0;
  chunk.count = count;
  for (int c = first; c < end && c * chunk.kScores < count; ++c) {
    chunk.base = c * chunk.kScores;
    load_chunk<kPerLane, kUnitStride>(chunk, row, stride, lane);
    int total;
    const std::uint32_t take = candidates<kMaxK>(chunk, size == k, last, k, lane, total);
    if (total == 0) continue;
    append(list, size, take, chunk, row, stride, lane);
    __syncwarp();
    size += total;
    if (size < k || (size == k && (c + 1) * chunk.kScores >= count)) continue;
    size = size <= 32 ? keep_best<1>(list, size, k, lane, last)
                      : keep_best<ListTraits<kMaxK>::kRounds>(list, size, k, lane, last);
  }
  return size;
}

}  // namespace msa::cuda::common::topk
