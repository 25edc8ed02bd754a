// SPDX-License-Identifier: MIT
// What rescoring reads: one query as the first column of a tile, and 32 keys as the scoring ring
// would bring them.
#pragma once

#include "cuda/common/decode/rescore/traits.cuh"
#include "cuda/common/decode/score/keys.cuh"
#include "cuda/common/rows.cuh"

namespace msa::cuda::common::decode {

/// As load_queries, of one row; whether all of its items are finite. One warp.
template <class Traits>
__device__ __forceinline__ bool load_query(Queries<typename Traits::Score>& q,
                                           const RescoreParams& p, std::int64_t row, int head,
                                           int visible, int lane) {
  using Score = typename Traits::Score;
  const auto* items = common::row_of<typename Traits::Item>(p.index_q, row, head);
  bool finite = true;
#pragma unroll
  for (int chunk = 0; chunk < Score::kChunks; ++chunk) {
    uint4 x{0, 0, 0, 0};
    if (lane < 4) x = *reinterpret_cast<const uint4*>(items + (chunk * 4 + lane) * 8);
    const std::uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = ptx::cvt_unpack<typename Traits::Item>(words[i]);
      finite &= fabsf(two.x) < INFINITY && fabsf(two.y) < INFINITY;
      q.fragments[0][chunk][i] = words[i];
    }
  }
  q.limit[0][0] = (lane & 3) == 0 ? visible : 0;
  q.limit[0][1] = 0;
  q.min_limit = visible;
  return __all_sync(common::kAllLanes, finite) != 0;
}

/// Keys `first` to `first + 31` of the request; bits of `bad`: m16 tiles whose page id is out of
/// range. What does not exist is zero and not read.
template <class Traits>
__device__ __forceinline__ unsigned load_keys(StepKeys<typename Traits::Score>& keys,
                                              const RescoreParams& p, const RequestRecord& r,
                                              int request, int head_k, int first, int lane) {
  using Score = typename Traits::Score;
  const auto* const data = static_cast<const typename Traits::Item*>(p.index_k.data);
  unsigned bad = 0;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    const int key = first + tile * 16;  // pages are no smaller
    std::int64_t row = r.k_begin + key;
    std::int64_t page = 0;
    bool there = key < r.seqlen_k;
    if (p.batch.page_size != 0 && there) {
      const int number = key / p.batch.page_size;
      row = key - number * p.batch.page_size;
      page = load_page(p.batch, request, number);
      there = page >= 0 && page < p.batch.num_pages;
      if (!there) bad |= 1u << tile;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int mine = half * 8 + lane / 4;
      const auto* items = data + page * p.index_k.stride_page +
                          (row + mine) * p.index_k.stride_token + head_k * p.index_k.stride_head +
                          (lane & 3) * 8;
      const bool exists = there && key + mine < r.seqlen_k;
#pragma unroll
      for (int chunk = 0; chunk < Score::kChunks; ++chunk) {
        uint4 x{0, 0, 0, 0};
        if (exists) x = __ldg(reinterpret_cast<const uint4*>(items + chunk * 32));
        keys.items[tile][half][chunk] = x;
      }
    }
  }
  return bad;
}

}  // namespace msa::cuda::common::decode
