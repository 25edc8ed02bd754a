// SPDX-License-Identifier: MIT
// Exact top-k of one row of block orders by one CTA. Every block becomes a 64-bit key, (order of
// the score, lower id first), so that no two are equal. The k-th largest of the maxima of groups of
// threads bounds the set from below; what passes the bound, some twenty blocks on random scores, is
// ranked by counting. Ties cost nothing.
#pragma once

#include <cstdint>

#include "cuda/common/decode/launch.h"
#include "cuda/common/decode/order.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/ptx/barrier.cuh"
#include "cuda/common/ptx/cp_async.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/geometry.cuh"

namespace msa::cuda::common::decode {

/// Shared memory of a selection, beside its scratch.
struct SelectStorage {
  alignas(16) unsigned long long maxima[kSelectThreads];
  unsigned long long chosen[kMaxTopk];  // keys of the ids
  int ids[kMaxTopk];                    // ascending, local to the request
  int num_candidates;
  int num_ids;
};
static_assert(sizeof(SelectStorage) <= 2048, "beside the scratch, in 99 KB");

/// The orders of one row's blocks.
struct SelectRow {
  const std::uint32_t* orders;
  std::int64_t first;  // global id of block 0
  int visible;         // blocks that the row sees
};

__device__ __forceinline__ SelectRow select_row(const SelectParams& p, const RequestRecord& r,
                                                int token, int head) {
  const RowBlocks blocks = row_blocks(p.batch, r, token);
  return {.orders = common::row_of<std::uint32_t>(p.orders, r.q_begin + token, head),
          .first = blocks.first,
          .visible = blocks.visible};
}

/// A segment of a row in shared memory. A thread has four neighbours of every kStep and touches no
/// others. Loops stay short: code that runs once is slow to fetch.
struct Segment {
  static constexpr int kStep = kSelectThreads * 4;
  uint4* fours;  // [kSegmentBlocks / 4]

  /// Fetches blocks `first` on, which another launch ordered; the largest key of this thread's
  /// blocks or of `best`.
  __device__ __forceinline__ unsigned long long fetch(const SelectRow& row, int first,
                                                      unsigned long long best, int thread) const {
    const int end = min(row.visible - first, kSegmentBlocks);
#pragma unroll 1
    for (int i = thread * 4; i < end; i += kStep)
      ptx::cp_async_16(fours + i / 4, row.orders + first + i, 16);
    ptx::cp_async_commit_group();
    ptx::cp_async_wait_group<0>();
    auto best_order = static_cast<std::uint32_t>(best >> 32);
    int best_block = select_block(best);
#pragma unroll 1
    for (int i = thread * 4; i < end; i += kStep) {
      uint4 four = fours[i / 4];
      if (i + 4 > end) {  // nobody wrote what lies behind
        if (i + 1 >= end) four.y = kNoBlock;
        if (i + 2 >= end) four.z = kNoBlock;
        four.w = kNoBlock;
        fours[i / 4] = four;
      }
      const std::uint32_t largest = max(max(four.x, four.y), max(four.z, four.w));
      if (largest > best_order) {
        const int block = first + i;
        best_order = largest;
        best_block = four.x == largest   ? block
                     : four.y == largest ? block + 1
                     : four.z == largest ? block + 2
                                         : block + 3;
      }
    }
    return best_order == kNoBlock ? 0 : select_key(best_order, best_block);
  }
};

/// Appends this thread's keys that reach `bound` to `candidates`.
__device__ __forceinline__ void keep_candidates(SelectStorage& s, unsigned long long* candidates,
                                                const SelectRow& row, const Segment& segment,
                                                unsigned long long bound, int thread) {
  const auto bound_order = max(static_cast<std::uint32_t>(bound >> 32), 1u);
#pragma unroll 1
  for (int first = 0; first < row.visible; first += kSegmentBlocks) {
    if (row.visible > kSegmentBlocks) segment.fetch(row, first, 0, thread);
    const int end = min(row.visible - first, kSegmentBlocks);
#pragma unroll 1
    for (int i = thread * 4; i < end; i += Segment::kStep) {
      const uint4 four = segment.fours[i / 4];
      if (max(max(four.x, four.y), max(four.z, four.w)) < bound_order) continue;
      const std::uint32_t orders[4] = {four.x, four.y, four.z, four.w};
      unsigned reach = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (orders[j] != kNoBlock && select_key(orders[j], first + i + j) >= bound)
          reach |= 1u << j;
      }
      int at = ptx::atom_add_shared(&s.num_candidates, __popc(reach));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (((reach >> j) & 1) != 0) candidates[at++] = select_key(orders[j], first + i + j);
      }
    }
  }
}

/// Number of keys among 32 in shared memory that are larger than `key`.
__device__ __forceinline__ int count_larger32(const unsigned long long* keys,
                                              unsigned long long key) {
  int larger = 0;
#pragma unroll
  for (int i = 0; i < 32; i += 2) {
    const ulonglong2 two = *reinterpret_cast<const ulonglong2*>(keys + i);
    larger += (two.x > key ? 1 : 0) + (two.y > key ? 1 : 0);
  }
  return larger;
}

/// Number of keys among `count` in shared memory that are larger than `key`.
__device__ __forceinline__ int count_larger(const unsigned long long* keys, int count,
                                            unsigned long long key) {
  int larger = 0;
#pragma unroll 8
  for (int i = 0; i < count; ++i) larger += keys[i] > key ? 1 : 0;
  return larger;
}

/// The k-th largest of `count` keys, a multiple of 32, of which those that are 0 do not count; 1
/// where there are fewer. Every warp finds it for itself.
__device__ __forceinline__ unsigned long long find_bound(const unsigned long long* keys, int count,
                                                         int topk, int lane) {
#pragma unroll 1
  for (int first = 0; first < count; first += 32) {
    const unsigned long long key = keys[first + lane];
    int larger = 0;
#pragma unroll 1
    for (int other = 0; other < count; other += 32) larger += count_larger32(keys + other, key);
    const unsigned found = __ballot_sync(common::kAllLanes, key != 0 && larger == topk - 1);
    if (found != 0) return __shfl_sync(common::kAllLanes, key, __ffs(static_cast<int>(found)) - 1);
  }
  return 1;
}

/// Ranks up to 32 candidates by one warp.
__device__ __forceinline__ void rank_few(SelectStorage& s, const unsigned long long* candidates,
                                         int topk, int lane) {
  const unsigned long long key = candidates[lane];  // 0 behind the last one
  const bool chosen = key != 0 && count_larger32(candidates, key) < topk;
  const unsigned all = __ballot_sync(common::kAllLanes, chosen);
  int below = 0;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int block = __shfl_sync(common::kAllLanes, select_block(key), i);
    below += ((all >> i) & 1) != 0 && block < select_block(key) ? 1 : 0;
  }
  if (chosen) {
    s.ids[below] = select_block(key);
    s.chosen[below] = key;
  }
}

/// A barrier of all threads of the CTA, or of one warp that rehearses alone.
__device__ __forceinline__ void meet(bool alone) {
  if (alone) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

/// Ranks any number of candidates. All who select call it. The warp that rehearses may have fewer
/// than there are ids.
__device__ __forceinline__ void rank_many(SelectStorage& s, const unsigned long long* candidates,
                                          int topk, int thread, bool alone) {
  const int count = s.num_candidates;
  if (thread < kSelectThreads) {
    for (int i = thread; i < count; i += alone ? 32 : kSelectThreads) {
      const int rank = count_larger(candidates, count, candidates[i]);
      if (rank < topk) s.maxima[rank] = candidates[i];  // every warp has its bound
    }
  }
  meet(alone);
  const int ranked = min(s.num_ids, count);
  if (thread < ranked) {
    const unsigned long long key = s.maxima[thread];
    int below = 0;
    for (int i = 0; i < ranked; ++i) below += select_block(s.maxima[i]) < select_block(key) ? 1 : 0;
    s.ids[below] = select_block(key);
    s.chosen[below] = key;
  }
}

/// Leaves in `s` the selected blocks, ascending, and their keys in the same order. All threads of
/// the CTA call it, those below kSelectThreads select; or one warp `alone`, which rehearses and
/// leaves anything. `lanes` as in SelectParams. Of the scratch the first `room` blocks are the
/// segment's.
__device__ __forceinline__ void select_topk(SelectStorage& s, void* scratch, int room,
                                            const SelectRow& row, int topk, int lanes, int thread,
                                            bool alone = false) {
  const Segment segment{static_cast<uint4*>(scratch)};
  auto* candidates = reinterpret_cast<unsigned long long*>(segment.fours + room / 4);
  const bool selects = thread < kSelectThreads;
  if (selects) {
    unsigned long long best = 0;
#pragma unroll 1
    for (int first = 0; first < row.visible; first += kSegmentBlocks)
      best = segment.fetch(row, first, best, thread);
    for (int distance = 1; distance < lanes; distance *= 2)
      best = max(best, __shfl_xor_sync(common::kAllLanes, best, distance));
    if (thread % lanes == 0) s.maxima[thread / lanes] = best;
    if (thread < 32) candidates[thread] = 0;
    if (thread == 0) {
      s.num_candidates = 0;
      s.num_ids = min(topk, row.visible);
    }
  }
  meet(alone);
  if (selects) {
    const unsigned long long bound =
        find_bound(s.maxima, kSelectThreads / lanes, topk, thread % 32);
    keep_candidates(s, candidates, row, segment, bound, thread);
    ptx::fence_proxy_async_shared();  // the copy engine may write where the scratch was
  }
  meet(alone);
  if (s.num_candidates > 32) {
    rank_many(s, candidates, topk, thread, alone);
  } else if (thread < 32) {
    rank_few(s, candidates, topk, thread);
  }
  meet(alone);
}

/// Writes one slot of a row's outputs, those that are wanted.
__device__ __forceinline__ void store_slot(const SelectParams& p, std::int64_t row, int head,
                                           int slot, int id, float score) {
  if (p.ids.data != nullptr) common::slots_of(p.ids, row, head)[slot * p.ids.stride_slot] = id;
  if (p.chosen.data != nullptr)
    common::slots_of(p.chosen, row, head)[slot * p.chosen.stride_slot] = score;
}

/// Writes a row of ids (global, `first` is the request's first block) and chosen scores from `s`.
__device__ __forceinline__ void store_selection(const SelectParams& p, const SelectStorage& s,
                                                std::int64_t row, int head, std::int64_t first,
                                                int thread) {
  for (int slot = thread; slot < p.topk; slot += kSelectThreads) {
    const bool valid = slot < s.num_ids;
    store_slot(p, row, head, slot, valid ? static_cast<int>(first + s.ids[slot]) : -1,
               valid ? score_of(static_cast<std::uint32_t>(s.chosen[slot] >> 32)) : -INFINITY);
  }
}

/// The same for a row that sees nothing.
__device__ __forceinline__ void store_empty_selection(const SelectParams& p, std::int64_t row,
                                                      int head, int thread) {
  for (int slot = thread; slot < p.topk; slot += kSelectThreads)
    store_slot(p, row, head, slot, -1, -INFINITY);
}

}  // namespace msa::cuda::common::decode
