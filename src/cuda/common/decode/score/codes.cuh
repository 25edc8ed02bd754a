// SPDX-License-Identifier: MIT
// A consumer warp's scores of keys in codes: widened to Item, which holds every code exactly, in
// front of the product, and multiplied by the scales of their keys behind it.
#pragma once

#include <type_traits>

#include "cuda/common/decode/score/keys.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/ptx/matrix.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/scales.cuh"

namespace msa::cuda::common::decode {

/// Of the keys that a lane holds scores of: [m16 tile][row half].
struct KeyScales {
  float of[2][2];
  bool odd;  // some key of the warp needs care
};

/// `scales`: those of this warp's keys in shared memory.
__device__ __forceinline__ void read_scales(KeyScales& to, const float* scales, int lane) {
  bool odd = false;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to.of[i / 2][i & 1] = scales[i * 8 + lane / 4];
    odd |= common::is_odd_scale(to.of[i / 2][i & 1]);
  }
  to.odd = __any_sync(common::kAllLanes, odd) != 0;
}

/// Keys that share `scale`.
__device__ __forceinline__ void share_scale(KeyScales& to, float scale) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to.of[i / 2][i & 1] = scale;
  to.odd = common::is_odd_scale(scale);
}

/// A warp's keys times every column, whose items are of type Item: [m16 tile][column tile]. The
/// tiles take turns, as a product waits for the one that it adds to.
template <class Traits, class Item>
__device__ __forceinline__ void multiply_codes(float (&d)[2][Traits::kTiles][4],
                                               const StepKeys<Traits>& keys,
                                               const Queries<Traits>& q) {
#pragma unroll
  for (int chunk = 0; chunk < Traits::kChunks; ++chunk) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const uint4& u = keys.items[tile][0][chunk];
        const uint4& l = keys.items[tile][1][chunk];
        const std::uint32_t upper = word == 0 ? u.x : word == 1 ? u.y : word == 2 ? u.z : u.w;
        const std::uint32_t lower = word == 0 ? l.x : word == 1 ? l.y : word == 2 ? l.z : l.w;
        std::uint32_t a[4];
        ptx::widen_e4m3x4<Item>(upper, a[0], a[2]);
        ptx::widen_e4m3x4<Item>(lower, a[1], a[3]);
#pragma unroll
        for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile) {
          ptx::mma_m16n8k16<Item>(d[tile][column_tile], a,
                                  q.fragments[column_tile][chunk][2 * word],
                                  q.fragments[column_tile][chunk][2 * word + 1]);
        }
      }
    }
  }
}

/// As reduce_keys, over columns of type Item.
template <class Traits, class Item>
__device__ __forceinline__ void reduce_codes(float (&best)[Traits::kTiles][2],
                                             const StepKeys<Traits>& keys, const KeyScales& scales,
                                             const Queries<Traits>& q, int first, unsigned bad,
                                             int lane) {
  const bool masked = first + Traits::kKeys > q.min_limit || bad != 0;
  float d[2][Traits::kTiles][4] = {};
  multiply_codes<Traits, Item>(d, keys, q);
#pragma unroll
  for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile) {
    float x[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      float(&scores)[4] = d[tile][column_tile];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (!std::is_same_v<Item, typename Traits::Item>)
          scores[i] *= q.unit[column_tile][i & 1];
        scores[i] *= scales.of[tile][i / 2];
      }
      if (masked) mask_scores<Traits>(scores, q, column_tile, tile, first, bad, lane);
#pragma unroll
      for (int i = 0; i < 2; ++i)  // fmaxf drops NaN: a NaN token score counts as -inf
        x[i] = fmaxf(x[i], fmaxf(scores[i], scores[2 + i]));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) best[column_tile][i] = column_max(x[i]);
  }
}

/// The same from the values themselves; `codes` are those of this warp's keys. A scale behind the
/// product would not say what they say where some overflow or are NaN. Slow and short.
template <class Traits>
__device__ __forceinline__ void reduce_odd_codes(float (&best)[Traits::kTiles][2],
                                                 const std::uint8_t* codes, const KeyScales& scales,
                                                 const Queries<Traits>& q, const ScoreParams& p,
                                                 const RequestRecord& r, int first, unsigned bad,
                                                 int lane) {
  const int group = p.heads / p.heads_k;
  const int columns = r.seqlen_q * group;
#pragma unroll
  for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile) {
    float d[2][4];
#pragma unroll 1
    for (int at = 0; at < 8; ++at) {
      const int key = at / 4 * 16 + (at & 2) * 4 + lane / 4;
      const int column = column_tile * 8 + (lane & 3) * 2 + (at & 1);
      float score = 0.f;
      if (column < columns) {
        const auto* query = common::row_of<typename Traits::Item>(
            p.index_q, r.q_begin + column / group,
            static_cast<int>(blockIdx.y) * group + column % group);
        const float upper = at < 4 ? scales.of[0][0] : scales.of[1][0];
        const float lower = at < 4 ? scales.of[0][1] : scales.of[1][1];
        const float scale = (at & 2) == 0 ? upper : lower;
#pragma unroll 1
        for (int i = 0; i < Traits::kDim; ++i) {
          const float value = ptx::e4m3_to_float(codes[key * Traits::kRowBytes + i]) * scale;
          score = fmaf(common::to_float(query[i]), value, score);
        }
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i == at) d[i / 4][i & 3] = score;
      }
    }
    float x[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      mask_scores<Traits>(d[tile], q, column_tile, tile, first, bad, lane);
#pragma unroll
      for (int i = 0; i < 2; ++i) x[i] = fmaxf(x[i], fmaxf(d[tile][i], d[tile][2 + i]));
    }
    best[column_tile][0] = column_max(x[0]);
    best[column_tile][1] = column_max(x[1]);
  }
}

}  // namespace msa::cuda::common::decode
