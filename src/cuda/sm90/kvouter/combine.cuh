// SPDX-License-Identifier: MIT
// Joins the partials of a (token, KV head), a warp each, in the order of its list: the same
// fragment order in, rows out.
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

/// The 16 rows of one (token, head), as wgmma leaves them: this lane's rows lane / 4 and lane / 4
/// + 8.
struct Joined {
  float out[kDim / 2];
  float best[2];
  float sum[2];
};

__device__ __forceinline__ void add_partial(Joined& joined, const uint4* partial,
                                            const float (&weight)[2]) {
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const uint4 four = __ldcs(partial + i * 32);
    const std::uint32_t pairs[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 values = common::unpack_steps(pairs[j]);
      joined.out[8 * i + 2 * j] += weight[j & 1] * values.x;
      joined.out[8 * i + 2 * j + 1] += weight[j & 1] * values.y;
    }
  }
}

/// Joins the slots of the mask.
__device__ __forceinline__ void join(Joined& joined, const Params& p, std::int64_t first_slot,
                                     unsigned slots, int lane) {
  const PartialRow* rows = p.partial_rows + first_slot * kGroup + lane / 4;
  joined.best[0] = joined.best[1] = -INFINITY;
  for (unsigned left = slots; left != 0; left &= left - 1) {
    const int slot = __ffs(static_cast<int>(left)) - 1;
    joined.best[0] = fmaxf(joined.best[0], rows[slot * kGroup].lse);
    joined.best[1] = fmaxf(joined.best[1], rows[slot * kGroup + 8].lse);
  }
  joined.sum[0] = joined.sum[1] = 0.0f;
#pragma unroll
  for (float& x : joined.out) x = 0.0f;
  for (unsigned left = slots; left != 0; left &= left - 1) {
    const int slot = __ffs(static_cast<int>(left)) - 1;
    float weight[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const PartialRow row = rows[slot * kGroup + 8 * r];
      // A NaN makes the row NaN: it is computed again.
      const float share = common::share_weight(row.lse, joined.best[r], 1.0f);
      joined.sum[r] += share;
      weight[r] = share * row.scale;
    }
    add_partial(joined, p.partials + (first_slot + slot) * kPartialVectors + lane, weight);
  }
}

/// Writes both rows of the lane; notes the pair where something ended non-finite.
template <class Item>
__device__ __forceinline__ void store_joined(Joined& joined, const Params& p, std::int64_t row,
                                             int head, int lane) {
  float probe = 0.0f;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float inverse = common::inverse_of(joined.sum[r]);
    const int q_head = head * kGroup + lane / 4 + 8 * r;
    const std::int64_t at =
        row * p.to.out.stride_t + q_head * p.to.out.stride_h + fragment_column(lane);
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
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
    if (p.to.lse.data != nullptr && (lane & 3) == 0) {
      common::item_of(p.to.lse, row, q_head) =
          common::lse_of(joined.best[r] * common::kLn2, joined.sum[r]);
    }
  }
  if (common::warp::any(probe != 0.0f) && lane == 0) note(p.suspects, row * p.heads_kv + head);
}

template <class Item>
__global__ void __launch_bounds__(kCombineWarps * 32)
    combine_kernel(const __grid_constant__ Params p, int chunk) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int pair =
      static_cast<int>(blockIdx.x) * kCombineWarps + static_cast<int>(threadIdx.x / 32);
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
  Joined joined;
  join(joined, p, static_cast<std::int64_t>(pair) * p.lists.k, slots, lane);
  store_joined<Item>(joined, p, request.q_begin + token, head, lane);
}

}  // namespace msa::cuda::sm90::kvouter
