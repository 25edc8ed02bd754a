// SPDX-License-Identifier: MIT
// A row whose blocks lie on the GPUs of one host: from the candidates of each of them to what all
// choose, by the CTAs of the row. The first one here sends this rank's candidates to the others,
// and every one waits for theirs.
#pragma once

#include "cuda/common/decode/attend/launch.h"
#include "cuda/common/decode/select.cuh"
#include "cuda/common/merge_selections/keys.cuh"
#include "cuda/common/ptx/system.cuh"

namespace msa::cuda::common::decode {

namespace selections = merge_selections;

using RankKey = unsigned long long;  // a selections::Key, as a selection here has them

/// What a row is among the candidates of a rank.
struct RankRow {
  std::int64_t row;   // of [T, Hi]
  std::int64_t rows;  // T x Hi
  std::int64_t token;
  int blocks;  // that the row sees here
  bool tells;  // this CTA sends the candidates, and writes the list
  int* list;   // [k], of the whole sequence; or none
  std::int64_t stride;
};

/// Candidates of this rank as keys, sent to the others where this CTA tells them.
__device__ __forceinline__ void send_candidates(const SelectStorage& s, const RanksParams& p,
                                                const RankRow& row, int topk, std::uint32_t number,
                                                RankKey* keys, int thread, bool rehearsal) {
#pragma unroll 1
  for (int i = thread; i < topk; i += kSelectThreads) {
    const bool there = i < s.num_ids && !rehearsal;
    const int id = there ? s.ids[i] * p.ranks + p.rank : -1;
    const float score = there ? score_of(static_cast<std::uint32_t>(s.chosen[i] >> 32)) : 0.0f;
    keys[p.rank * topk + i] = there ? selections::make_key(score, id) : rehearsal ? 1 + i : 0;
    if (!row.tells || rehearsal) continue;
    const std::int64_t at = (p.rank * row.rows + row.row) * topk + i;
    const uint4 told = {static_cast<std::uint32_t>(id), number, __float_as_uint(score), number};
#pragma unroll 1
    for (int n = 1; n < p.ranks; ++n) {
      const int to = p.rank + n < p.ranks ? p.rank + n : p.rank + n - p.ranks;
      ptx::st_volatile(reinterpret_cast<uint4*>(p.inboxes[to] + at), told);
    }
  }
}

/// Candidates of the others and what is forced, as keys.
__device__ __forceinline__ void receive_candidates(const RanksParams& p, const RankRow& row,
                                                   int topk, std::uint32_t number, RankKey* keys,
                                                   int thread, bool rehearsal) {
  const auto* inbox = reinterpret_cast<const uint4*>(p.inboxes[p.rank]);
  const int others = (p.ranks - 1) * topk;
#pragma unroll 1
  for (int i = thread; i < others + p.num_forced; i += kSelectThreads) {
    int id = 0;
    float score = INFINITY;
    int at = topk + i;  // behind all candidates what is forced
    if (i < others) {
      const int from = i / topk < p.rank ? i / topk : i / topk + 1;
      at = from * topk + i % topk;
      const uint4* word = inbox + (from * row.rows + row.row) * topk + i % topk;
      uint4 told = ptx::ld_volatile(word);
      const std::uint64_t start = p.timeout_ns > 0 ? ptx::globaltimer() : 0;
      while ((told.y != number || told.w != number) && !rehearsal) {
        if (p.timeout_ns > 0 && ptx::globaltimer() - start > p.timeout_ns) ptx::trap();
        told = ptx::ld_volatile(word);
      }
      id = static_cast<int>(told.x);
      score = __uint_as_float(told.z);
    } else {
      id = p.forced[row.token * p.num_forced + i - others];
    }
    keys[at] = id < 0 ? 0 : selections::make_key(score, id);
  }
}

/// Keeps the best keys in s.maxima, best first, 0 behind the last; who calls it set them to 0.
__device__ __forceinline__ void rank_keys(SelectStorage& s, const RankKey* keys, int count,
                                          int topk, int thread) {
#pragma unroll 1
  for (int i = thread; i < count; i += kSelectThreads) {
    const RankKey key = keys[i];
    if (key == 0) continue;
    const int larger = count_larger(keys, count, key);
    if (larger < topk) s.maxima[larger] = key;
  }
}

/// From the best keys the whole list, ascending, where this CTA writes it, and in s.ids what of it
/// lies here, local, ascending.
__device__ __forceinline__ void keep_own(SelectStorage& s, const RanksParams& p, const RankRow& row,
                                         int topk, int thread, bool rehearsal) {
  if (thread >= topk || thread >= kMaxTopk) return;
  const RankKey key = s.maxima[thread];
  const int id = selections::id_of(key);
  int count = 0;
  int below = 0;
  int own_below = 0;
  int own = 0;
#pragma unroll 1
  for (int i = 0; i < topk; ++i) {
    const RankKey other = s.maxima[i];
    if (other == 0) continue;
    const int other_id = selections::id_of(other);
    const bool mine = other_id % p.ranks == p.rank && other_id / p.ranks < row.blocks;
    ++count;
    own += mine ? 1 : 0;
    if (other_id >= id) continue;
    ++below;
    own_below += mine ? 1 : 0;
  }
  const bool there = key != 0;
  if (there && id % p.ranks == p.rank && id / p.ranks < row.blocks) s.ids[own_below] = id / p.ranks;
  if (thread == 0) s.num_ids = own;
  if (!row.tells || row.list == nullptr || rehearsal) return;
  if (there) row.list[below * row.stride] = id;
  if (thread >= count) row.list[thread * row.stride] = -1;
}

/// From a selection of this rank's part in `s` to what of the whole selection lies here. All
/// threads of the CTA call it, those below kSelectThreads work; or one warp, which rehearses.
/// `scratch` is the selection's.
__device__ __forceinline__ void choose_among_ranks(SelectStorage& s, const RanksParams& p,
                                                   const RankRow& row, int topk,
                                                   std::uint32_t number, void* scratch, int thread,
                                                   bool rehearsal) {
  auto* keys = static_cast<RankKey*>(scratch);
  const bool works = thread < kSelectThreads;
  if (works) {
    send_candidates(s, p, row, topk, number, keys, thread, rehearsal);
    receive_candidates(p, row, topk, number, keys, thread, rehearsal);
    if (thread < kMaxTopk) s.maxima[thread] = 0;
  }
  meet(rehearsal);
  if (works) rank_keys(s, keys, p.ranks * topk + p.num_forced, topk, thread);
  if (works) ptx::fence_proxy_async_shared();  // the copy engine may write where the scratch was
  meet(rehearsal);
  if (works) keep_own(s, p, row, topk, thread, rehearsal);
  meet(rehearsal);
}

}  // namespace msa::cuda::common::decode
