// SPDX-License-Identifier: MIT
// Joins the partials of a (token, KV head), a warp for each quarter of the columns, in the order of
// its list: the same fragment order in, rows out.
#pragma once

#include "cuda/common/join_by_lse.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/steps.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/sm90/kvouter/lists.cuh"
#include "cuda/sm90/kvouter/traits.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/tile/fragment.cuh"

namespace msa::cuda::sm90::kvouter {

inline constexpr int kCombineWarps = 8;
inline constexpr int kCombineCtas = 3;   // that an SM holds
inline constexpr int kCombineParts = 4;  // of the columns
inline constexpr int kPartVectors = kDim / 16 / kCombineParts;
inline constexpr int kPartialsAtOnce = 4;  // on their way to a warp

/// 16 rows of one (token, head) in a part of the columns, as wgmma leaves them: this lane's rows
/// lane / 4 and lane / 4 + 8.
struct Joined {
  float out[kDim / 2 / kCombineParts];
  float best[2];
  float sum[2];
};

/// What a warp knows of the rows of its partials.
using PartialRows = PartialRow[kMaxTopk][kGroup];

/// Those of the slots of the mask; all are on their way at once.
__device__ __forceinline__ void fetch_rows(PartialRows& to, const PartialRow* from, unsigned slots,
                                           int lane) {
  constexpr int kVectors = kGroup * sizeof(PartialRow) / sizeof(uint4);  // of a slot
  constexpr int kLanesOfSlots = 32 / kVectors;
#pragma unroll
  for (int first = 0; first < kMaxTopk; first += kLanesOfSlots) {
    const int slot = first + lane / kVectors;
    if ((slots >> slot & 1) != 0) {
      reinterpret_cast<uint4*>(to[slot])[lane % kVectors] =
          reinterpret_cast<const uint4*>(from + slot * kGroup)[lane % kVectors];
    }
  }
  __syncwarp();
}

__device__ __forceinline__ void add_partial(Joined& joined, const uint4 (&partial)[kPartVectors],
                                            const float (&weight)[2]) {
#pragma unroll
  for (int i = 0; i < kPartVectors; ++i) {
    const std::uint32_t pairs[4] = {partial[i].x, partial[i].y, partial[i].z, partial[i].w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 values = common::unpack_steps(pairs[j]);
      joined.out[8 * i + 2 * j] += weight[j & 1] * values.x;
      joined.out[8 * i + 2 * j + 1] += weight[j & 1] * values.y;
    }
  }
}

/// Joins the slots of the mask; `partials` are those of slot 0, from this lane's first vector on.
__device__ __forceinline__ void join(Joined& joined, const uint4* partials,
                                     const PartialRows& all_rows, unsigned slots, int lane) {
  const PartialRow* rows = all_rows[0] + lane / 4;
  joined.best[0] = joined.best[1] = -INFINITY;
  for (unsigned left = slots; left != 0; left &= left - 1) {
    const int slot = __ffs(static_cast<int>(left)) - 1;
    joined.best[0] = fmaxf(joined.best[0], rows[slot * kGroup].lse);
    joined.best[1] = fmaxf(joined.best[1], rows[slot * kGroup + 8].lse);
  }
  joined.sum[0] = joined.sum[1] = 0.0f;
#pragma unroll
  for (float& x : joined.out) x = 0.0f;
#pragma unroll 1
  for (unsigned left = slots; left != 0;) {
    int slot[kPartialsAtOnce];
    uint4 partial[kPartialsAtOnce][kPartVectors];
#pragma unroll
    for (int n = 0; n < kPartialsAtOnce; ++n) {
      slot[n] = __ffs(static_cast<int>(left)) - 1;
      left &= left - 1;
      if (slot[n] < 0) break;
#pragma unroll
      for (int i = 0; i < kPartVectors; ++i)
        partial[n][i] = __ldcs(partials + slot[n] * kPartialVectors + i * 32);
    }
#pragma unroll
    for (int n = 0; n < kPartialsAtOnce; ++n) {
      if (slot[n] < 0) break;
      float weight[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const PartialRow row = rows[slot[n] * kGroup + 8 * r];
        // A NaN makes the row NaN: it is computed again.
        const float share = common::share_weight(row.lse, joined.best[r], 1.0f);
        joined.sum[r] += share;
        weight[r] = share * row.scale;
      }
      add_partial(joined, partial[n], weight);
    }
  }
}

/// Writes both rows of the lane in columns from `column` on; notes the pair where something ended
/// non-finite.
template <class Item>
__device__ __forceinline__ void store_joined(Joined& joined, const Params& p, std::int64_t row,
                                             int head, int column, int lane) {
  float probe = 0.0f;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float inverse = common::inverse_of(joined.sum[r]);
    const int q_head = head * kGroup + lane / 4 + 8 * r;
    const std::int64_t at =
        row * p.to.out.stride_t + q_head * p.to.out.stride_h + column + fragment_column(lane);
#pragma unroll
    for (int i = 0; i < kDim / 8 / kCombineParts; ++i) {
      const float x = joined.out[4 * i + 2 * r] * inverse;
      const float y = joined.out[4 * i + 2 * r + 1] * inverse;
      probe = fmaf(x, 0.0f, fmaf(y, 0.0f, probe));
      if (p.to.f32 != 0) {
        static_cast<float*>(p.to.out.data)[at + 8 * i] = x;
        static_cast<float*>(p.to.out.data)[at + 8 * i + 1] = y;
      } else if (p.to.vectors != 0) {
        *reinterpret_cast<std::uint32_t*>(static_cast<Item*>(p.to.out.data) + at + 8 * i) =
            ptx::cvt_pack<Item>(x, y);
      } else {
        static_cast<Item*>(p.to.out.data)[at + 8 * i] = static_cast<Item>(x);
        static_cast<Item*>(p.to.out.data)[at + 8 * i + 1] = static_cast<Item>(y);
      }
    }
    if (p.to.lse.data != nullptr && column == 0 && (lane & 3) == 0) {
      common::item_of(p.to.lse, row, q_head) =
          common::lse_of(joined.best[r] * common::kLn2, joined.sum[r]);
    }
  }
  if (common::warp::any(probe != 0.0f) && lane == 0) note(p.suspects, row * p.heads_kv + head);
}

template <class Item>
__global__ void __launch_bounds__(kCombineWarps * 32, kCombineCtas)
    combine_kernel(const __grid_constant__ Params p, int chunk) {
  __shared__ alignas(uint4) PartialRows rows[kCombineWarps];
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int pair = (static_cast<int>(blockIdx.x) * kCombineWarps + warp) / kCombineParts;
  const int part = warp % kCombineParts;
  const int head = pair % p.heads_kv;
  const int chunk_token = pair / p.heads_kv;
  const int slot = chunk * p.chunk_tiles + chunk_token / p.tokens_per_tile;
  const int in_tile = chunk_token % p.tokens_per_tile;
  if (!takes(p, head, slot)) return;
  const common::prologue::TileRecord tile = p.tiles[p.tile_begin + slot];
  const std::int64_t token = static_cast<std::int64_t>(tile.first) + in_tile;
  const RequestRecord request = p.requests[tile.request];
  if (token >= request.seqlen_q) return;
  const unsigned slots =
      __ballot_sync(common::kAllLanes, slot_block(p, request, token, head, lane) >= 0);
  const std::int64_t first_slot = static_cast<std::int64_t>(pair) * p.lists.k;
  fetch_rows(rows[warp], p.partial_rows + first_slot * kGroup, slots, lane);
  Joined joined;
  join(joined, p.partials + first_slot * kPartialVectors + part * kPartVectors * 32 + lane,
       rows[warp], slots, lane);
  store_joined<Item>(joined, p, request.q_begin + token, head, part * (kDim / kCombineParts), lane);
}

}  // namespace msa::cuda::sm90::kvouter
