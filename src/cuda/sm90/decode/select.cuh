// SPDX-License-Identifier: MIT
// Exact top-k of one row of block scores by one CTA. Every block becomes a 64-bit key, (order of
// the score, lower id first), so that no two are equal. The k-th largest of the threads' own maxima
// bounds the set from below; what passes the bound, some twenty blocks on random scores, is ranked
// by counting. Ties cost nothing.
#pragma once

#include <cstdint>

#include "cuda/geometry.cuh"
#include "cuda/sm90/decode/launch.h"
#include "cuda/sm90/ptx/barrier.cuh"

namespace msa::cuda::sm90::decode {

/// Shared memory of a selection; `candidates` lies behind it, select_candidates() keys long.
struct SelectStorage {
  unsigned long long maxima[kSelectThreads];
  unsigned long long chosen[kMaxTopk];
  int ids[kMaxTopk];  // ascending, local to the request
  unsigned long long bound;
  int num_candidates;
  int num_ids;
};

/// At most k threads hold something above the bound, each at most this many blocks.
__host__ __device__ constexpr int select_candidates(int topk, int max_blocks) {
  const int chunk = kSelectThreads * 4;
  return topk * 4 * ((max_blocks + chunk - 1) / chunk);
}

/// Monotone map of floats to integers; -0 and +0 meet, no finite or infinite score reaches kForced.
__device__ __forceinline__ std::uint32_t ordered(float score) {
  const std::uint32_t bits = __float_as_uint(score + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
inline constexpr std::uint32_t kForced = 0xffffffffu;

__device__ __forceinline__ float score_of(std::uint32_t order) {
  if (order == kForced) return __int_as_float(0x7f800000);
  return __uint_as_float((order & 0x80000000u) != 0 ? order & 0x7fffffffu : ~order);
}

__device__ __forceinline__ unsigned long long select_key(std::uint32_t order, int block) {
  return (static_cast<unsigned long long>(order) << 32) |
         (0xffffffffu - static_cast<std::uint32_t>(block));
}

__device__ __forceinline__ int select_block(unsigned long long key) {
  return static_cast<int>(0xffffffffu - static_cast<std::uint32_t>(key));
}

/// The keys of one row: what a thread needs to turn scores into keys. Blocks are local.
struct SelectRow {
  const float* scores;
  std::int64_t first;  // global id of block 0
  int visible;         // blocks that the row sees
  int forced_before;   // blocks below this one are forced,
  int forced_from;     // and blocks from this one on

  __device__ __forceinline__ std::uint32_t order(float score, int block) const {
    return block < forced_before || block >= forced_from ? kForced : ordered(score);
  }
};

__device__ __forceinline__ SelectRow select_row(const SelectParams& p, const RequestRecord& r,
                                                int token, int head) {
  const std::int64_t last = last_position(r, token, p.batch.causal != 0);
  const int keys = visible_keys(r, token, p.batch.causal != 0);
  const std::int64_t first = first_block(r, p.batch.block_size);
  const std::int64_t recent =
      (last < 0 ? 0 : last / p.batch.block_size + 1) - p.batch.local_blocks - first;
  return {
      .scores = p.scores.data + (r.q_begin + token) * p.scores.stride_t + head * p.scores.stride_h,
      .first = first,
      .visible = static_cast<int>(ceil_div(keys, p.batch.block_size)),
      .forced_before = static_cast<int>(clamp64(p.batch.init_blocks - first, 0, INT32_MAX)),
      .forced_from = static_cast<int>(clamp64(recent, 0, INT32_MAX))};
}

/// Scores that a thread holds, four neighbours of every kStep: one load after the other, a million
/// tokens took 16 us.
struct ScoreBatch {
  static constexpr int kLoads = 8;
  static constexpr int kStep = kSelectThreads * 4;
  static constexpr int kBlocks = kLoads * kStep;  // of all threads together
  float4 fours[kLoads];

  /// Blocks first + 4 * thread + i * kStep + (0, 1, 2, 3); another launch wrote the scores.
  __device__ __forceinline__ void load(const SelectRow& row, int first, int thread) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int block = first + thread * 4 + i * kStep;
      if (block < row.visible)
        fours[i] = __ldcg(reinterpret_cast<const float4*>(row.scores + block));
    }
  }

  /// Calls visit(order, block) for every visible block of load(), ids ascending.
  template <class Visit>
  __device__ __forceinline__ void visit(const SelectRow& row, int first, int thread,
                                        const Visit& visit) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (first + i * kStep >= row.visible) return;  // the same for all threads: cold code is slow
      const float scores[4] = {fours[i].x, fours[i].y, fours[i].z, fours[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int block = first + thread * 4 + i * kStep + j;
        if (block < row.visible) visit(row.order(scores[j], block), block);
      }
    }
  }
};

/// Calls visit(order, block) for every visible block of this thread's share, ids ascending; `front`
/// holds the first ones.
template <class Visit>
__device__ __forceinline__ void for_each_block(const SelectRow& row, const ScoreBatch& front,
                                               int thread, const Visit& visit) {
  front.visit(row, 0, thread, visit);
  for (int first = ScoreBatch::kBlocks; first < row.visible; first += ScoreBatch::kBlocks) {
    ScoreBatch batch;
    batch.load(row, first, thread);
    batch.visit(row, first, thread, visit);
  }
}

/// Number of keys among `count` in shared memory that are larger than `key`.
__device__ __forceinline__ int count_larger(const unsigned long long* keys, int count,
                                            unsigned long long key) {
  int larger = 0;
#pragma unroll 4
  for (int i = 0; i < count; ++i) larger += keys[i] > key ? 1 : 0;
  return larger;
}

/// Leaves in `s` the selected blocks, ascending, and their keys in the same order. Called by
/// threads 0 to kSelectThreads - 1, which meet on named barrier `barrier`.
__device__ __forceinline__ void select_topk(SelectStorage& s, unsigned long long* candidates,
                                            const SelectRow& row, int topk, int thread,
                                            int barrier) {
  ScoreBatch front;
  front.load(row, 0, thread);
  std::uint32_t best_order = 0;
  int best_block = -1;
  for_each_block(row, front, thread, [&](std::uint32_t order, int block) {
    if (order > best_order || best_block < 0) {
      best_order = order;
      best_block = block;
    }
  });
  const unsigned long long best = best_block < 0 ? 0 : select_key(best_order, best_block);
  s.maxima[thread] = best;
  if (thread == 0) {
    s.bound = 1;
    s.num_candidates = 0;
    s.num_ids = min(topk, row.visible);
  }
  ptx::bar_sync(barrier, kSelectThreads);
  // Threads without a block hold key 0: with fewer than k owners of blocks, everything passes.
  if (best != 0 && count_larger(s.maxima, kSelectThreads, best) == topk - 1) s.bound = best;
  ptx::bar_sync(barrier, kSelectThreads);
  const unsigned long long bound = s.bound;
  const auto bound_order = static_cast<std::uint32_t>(bound >> 32);
  for_each_block(row, front, thread, [&](std::uint32_t order, int block) {
    if (order < bound_order) return;
    const unsigned long long key = select_key(order, block);
    if (key >= bound) candidates[atomicAdd(&s.num_candidates, 1)] = key;
  });
  ptx::bar_sync(barrier, kSelectThreads);
  const int num_candidates = s.num_candidates;
  unsigned long long mine = 0;
  for (int i = thread; i < num_candidates; i += kSelectThreads) {
    const int rank = count_larger(candidates, num_candidates, candidates[i]);
    if (rank < topk)
      s.maxima[rank] = candidates[i];  // the maxima are done with: everyone passed two barriers
  }
  ptx::bar_sync(barrier, kSelectThreads);
  if (thread < s.num_ids) {
    mine = s.maxima[thread];
    const int block = select_block(mine);
    int below = 0;
    for (int i = 0; i < s.num_ids; ++i) below += select_block(s.maxima[i]) < block ? 1 : 0;
    s.ids[below] = block;
    s.chosen[below] = mine;
  }
  ptx::bar_sync(barrier, kSelectThreads);
}

/// Writes a row of ids (global) and chosen scores from `s`; a row without request passes num_ids 0.
__device__ __forceinline__ void store_selection(const SelectParams& p, const SelectStorage& s,
                                                std::int64_t row, int head, std::int64_t first,
                                                int num_ids, int thread) {
  for (int slot = thread; slot < p.topk; slot += kSelectThreads) {
    const bool valid = slot < num_ids;
    if (p.ids != nullptr) {
      p.ids[row * p.stride_ids_t + head * p.stride_ids_h + slot * p.stride_ids_slot] =
          valid ? static_cast<int>(first + s.ids[slot]) : -1;
    }
    if (p.chosen != nullptr) {
      p.chosen[row * p.stride_chosen_t + head * p.stride_chosen_h + slot * p.stride_chosen_slot] =
          valid ? score_of(static_cast<std::uint32_t>(s.chosen[slot] >> 32))
                : -__int_as_float(0x7f800000);
    }
  }
}

}  // namespace msa::cuda::sm90::decode
