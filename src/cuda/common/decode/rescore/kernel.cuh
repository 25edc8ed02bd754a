// SPDX-License-Identifier: MIT
// Rescoring: of a row's blocks, those whose upper bound reaches the k-th largest lower bound are
// scored from the index keys, with the very operations of decode scoring: of each those parts of 32
// keys that may hold its maximum. Every CTA of a row finds the same bound for itself and takes its
// share of the blocks, every ctas-th one. Which warp scores what does not matter: a block's order
// is a maximum of integers.
#pragma once

#include <algorithm>

#include "cuda/common/decode/order.cuh"
#include "cuda/common/decode/request.cuh"
#include "cuda/common/decode/rescore/keys.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::decode {

/// Largest lower bounds of every fourth block of a lane, 0 behind the last.
__device__ __forceinline__ uint4 largest_of_fours(const std::uint32_t* lower, int visible,
                                                  int thread, int threads) {
  uint4 best{kNoBlock, kNoBlock, kNoBlock, kNoBlock};
#pragma unroll 8  // a row of a million tokens: all loads at once
  for (int first = thread * 4; first < visible; first += threads * 4) {
    uint4 four = __ldcg(reinterpret_cast<const uint4*>(lower + first));
    if (first + 4 > visible) {  // nobody wrote what lies behind
      if (first + 1 >= visible) four.y = kNoBlock;
      if (first + 2 >= visible) four.z = kNoBlock;
      four.w = kNoBlock;
    }
    best = {max(best.x, four.x), max(best.y, four.y), max(best.z, four.z), max(best.w, four.w)};
  }
  return best;
}

/// What a block's upper bound must reach: the k-th largest of the maxima of groups of lower bounds,
/// as k blocks hold them. Neighbours lie in different groups: where the best blocks stand together,
/// the bound is close to the k-th largest of all. All threads of the CTA call it.
template <class Traits>
__device__ __forceinline__ std::uint32_t find_least(RescoreShared<Traits>& s,
                                                    const std::uint32_t* lower, int visible,
                                                    int topk, int thread) {
  *reinterpret_cast<uint4*>(s.maxima + thread * 4) =
      largest_of_fours(lower, visible, thread, Traits::kThreads);
  if (thread == 0) s.least = kNoBlock + 1;
  __syncthreads();
  const int groups = topk <= 16 ? Traits::kFewGroups : Traits::kManyGroups;
  std::uint32_t best = kNoBlock;
  if (thread < groups) {
    for (int at = thread; at < Traits::kWarps * Traits::kFewGroups; at += groups)
      best = max(best, s.maxima[at]);
    s.maxima[thread] = best;  // which no other thread reads before the barrier
  }
  __syncthreads();
  if (thread < groups) {
    int reached = 0;  // by maxima
#pragma unroll 8
    for (int i = 0; i < groups; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(s.maxima + i);
      reached += (four.x >= best ? 1 : 0) + (four.y >= best ? 1 : 0) + (four.z >= best ? 1 : 0) +
                 (four.w >= best ? 1 : 0);
    }
    if (reached >= topk) atomicMax(&s.least, best);
  }
  __syncthreads();
  return s.least;
}

/// Logarithm of a block's parts.
__device__ __forceinline__ int part_shift(const BatchParams& batch) {
  return __ffs(batch.block_size) - __ffs(kPartKeys);
}

template <class Traits>
class Rescorer {
 public:
  __device__ __forceinline__ Rescorer(const RescoreParams& params, RescoreShared<Traits>& shared,
                                      const RequestRecord& r, int request, int token, int head)
      : params_(params),
        shared_(shared),
        r_(r),
        visible_(row_blocks(params.batch, r, token).visible),
        row_(r.q_begin + token),
        lower_(common::row_of<std::uint32_t>(params.lower, row_, head)),
        upper_(common::row_of<std::uint32_t>(params.upper, row_, head)),
        part_shift_(part_shift(params.batch)),
        request_(request),
        head_(head) {}

  /// Scores what may be chosen of every ctas-th block of the row, from block `share` on.
  __device__ __forceinline__ void run(int share, int token, int warp, int lane) {
    const RescoreParams& p = params_;
    const int visible = visible_keys(r_, token, p.batch.causal != 0);
    Queries<Score> q;
    const bool finite = load_query<Traits>(q, p, row_, head_, visible, lane);
    ptx::griddepcontrol_wait();
    const int thread = warp * 32 + lane;
    Parts mine = parts_of(share + p.ctas * thread);  // on its way with all lower bounds
    const std::uint32_t least = find_least<Traits>(shared_, lower_, visible_, p.topk, thread);
#pragma unroll 1
    for (int first = share; first < visible_; first += p.ctas * Traits::kThreads) {
      if (thread == 0) shared_.num_listed = 0;
      __syncthreads();
      const int block = first + p.ctas * thread;
      list_parts(mine, block, least);
      __syncthreads();
      score_listed(q, warp, lane);
      mine = parts_of(block + p.ctas * Traits::kThreads);
      __syncthreads();
    }
    if (share == 0 && p.candidates.data != nullptr) count(least, finite, thread);
  }

 private:
  using Score = typename Traits::Score;

  /// Bounds of a block, kNoBlock where there is none.
  struct Parts {
    std::uint32_t upper[4];
    std::uint32_t lower;
  };

  __device__ __forceinline__ Parts parts_of(int block) const {
    Parts parts{{kNoBlock, kNoBlock, kNoBlock, kNoBlock}, kNoBlock};
    if (block >= visible_) return parts;
    const std::uint32_t* upper = upper_ + (block << part_shift_);
    parts.lower = __ldcg(lower_ + block);
    if (part_shift_ == 2) {
      const uint4 four = __ldcg(reinterpret_cast<const uint4*>(upper));
      parts.upper[0] = four.x;
      parts.upper[1] = four.y;
      parts.upper[2] = four.z;
      parts.upper[3] = four.w;
    } else {
      const uint2 two = __ldcg(reinterpret_cast<const uint2*>(upper));
      parts.upper[0] = two.x;
      parts.upper[1] = two.y;
    }
    return parts;
  }

  /// Which parts reach an order, as bits; a forced block has none.
  static __device__ __forceinline__ unsigned parts_that_reach(const Parts& parts,
                                                              std::uint32_t order) {
    unsigned reach = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (parts.upper[i] >= order && parts.upper[i] != kForced) reach |= 1u << i;
    }
    return reach;
  }

  /// What lies below the block's own lower bound is not its maximum.
  __device__ __forceinline__ void list_parts(const Parts& parts, int block, std::uint32_t least) {
    const unsigned reach = parts_that_reach(parts, max(least, parts.lower));
    if (reach == 0) return;
    int at = ptx::atom_add_shared(&shared_.num_listed, __popc(reach));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (((reach >> i) & 1) != 0) shared_.list[at++] = (block << part_shift_) + i;
    }
  }

  /// A warp takes a part at a time, as in scoring.
  __device__ __forceinline__ void score_listed(const Queries<Score>& q, int warp, int lane) {
    const RescoreParams& p = params_;
    const int head_k = head_ / (p.heads / p.heads_k);
    auto* orders = common::row_of<std::uint32_t>(p.orders, row_, head_);
    const int parts = shared_.num_listed;
#pragma unroll 1
    for (int i = warp; i < parts; i += Traits::kWarps) {
      const int part = shared_.list[i];
      const int block = part >> part_shift_;
      const int first = part * kPartKeys;
      StepKeys<Score> keys;
      const unsigned bad = load_keys<Traits>(keys, p, r_, request_, head_k, first, lane);
      float best[1][2];
      reduce_keys<Score>(best, keys, q, first, bad, lane);
      if (lane == 0) atomicMax(orders + block, order_of(best[0][0]));
    }
  }

  __device__ __forceinline__ void count(std::uint32_t least, bool finite, int thread) {
    int mine = 0;
#pragma unroll 4
    for (int block = thread; block < visible_; block += Traits::kThreads)
      mine += parts_that_reach(parts_of(block), least) != 0 ? 1 : 0;
    mine = common::warp::sum(mine);
    if (thread == 0) shared_.count = 0;
    __syncthreads();
    if (thread % 32 == 0) ptx::atom_add_shared(&shared_.count, mine);
    __syncthreads();
    if (thread == 0) common::item_of(params_.candidates, row_, head_) = finite ? shared_.count : -1;
  }

  const RescoreParams& params_;
  RescoreShared<Traits>& shared_;
  const RequestRecord& r_;
  const int visible_;  // blocks
  const std::int64_t row_;
  const std::uint32_t* const lower_;
  const std::uint32_t* const upper_;
  const int part_shift_;  // logarithm of a block's parts
  const int request_;
  const int head_;
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 2)
    rescore_kernel(const __grid_constant__ RescoreParams p) {
  __shared__ RescoreShared<Traits> shared;
  ptx::griddepcontrol_launch_dependents();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int head = blockIdx.x / p.ctas;
  const int share = blockIdx.x % p.ctas;
  const int request = blockIdx.y / p.token_slots;
  const int token = blockIdx.y % p.token_slots;
  const RequestRecord r = early_request(p.batch, p.records, request);
  if (warp == 0) touch_pages(p.batch, request, lane);
  if (p.candidates.data != nullptr && share == 0) {
    for (std::int64_t row = padding_begin(p.batch) + blockIdx.y; row < p.batch.total_q;
         row += gridDim.y) {
      if (threadIdx.x == 0) common::item_of(p.candidates, row, head) = 0;
    }
  }
  if (token >= r.seqlen_q) return ptx::griddepcontrol_wait();  // who waits for this, for all before
  Rescorer<Traits>(p, shared, r, request, token, head).run(share, token, warp, lane);
}

template <RescoreConfig cfg>
void launch_rescore_instance(const RescoreParams& params, cudaStream_t stream) {
  using Chosen = RescoreTraits<cfg>;
  launch_kernel(
      rescore_kernel<Chosen>,
      {.grid = dim3(static_cast<unsigned>(params.heads * params.ctas),
                    static_cast<unsigned>(std::max(params.batch.batch, 1) * params.token_slots)),
       .block = dim3(Chosen::kThreads),
       .programmatic = true,
       .stream = stream},
      params);
}

}  // namespace msa::cuda::common::decode
