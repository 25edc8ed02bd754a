// SPDX-License-Identifier: MIT
// A consumer warp's bounds of keys in a filter's codes: queries become codes, too, products are
// integers, and each key gives an interval (filter_bounds.h), as keys of a warp may have bounds of
// three pages or groups.
#pragma once

#include <type_traits>

#include "cuda/common/decode/score/keys.cuh"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/ptx/matrix.cuh"
#include "cuda/common/rotate.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/tile/filter_bounds.h"

namespace msa::cuda::common::decode {

/// As Queries: lane / 4 is the column, lane % 4 holds the codes that it will load of a key.
template <class Traits>
struct CodedQueries {
  std::uint32_t codes[Traits::kTiles][Traits::kChunks][4];
  QueryBound bound[Traits::kTiles][2];  // of the accumulator columns that this lane holds
  int limit[Traits::kTiles][2];
  int min_limit;
};

template <class Traits>
using Columns = std::conditional_t<Traits::kFilter, CodedQueries<Traits>, Queries<Traits>>;

/// A column's items, 16 to a load, become codes; all four lanes of a column know its bound.
template <class Traits>
__device__ __forceinline__ QueryBound
code_column(std::uint32_t (&codes)[Traits::kChunks][4],
            const std::uint32_t (&items)[Traits::kChunks][Traits::kPairs], bool rotated) {
  constexpr int kPairs = Traits::kChunks * Traits::kPairs;
  float x[2 * kPairs];
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
    const float2 pair =
        ptx::cvt_unpack<typename Traits::Item>(items[n / Traits::kPairs][n % Traits::kPairs]);
    x[2 * n] = pair.x;
    x[2 * n + 1] = pair.y;
  }
  if (rotated) {
    static_assert(Traits::kPairs == 8 && Traits::kChunks == 2,
                  "16 neighbours, and those 64 behind");
    common::rotate_held<1>(x);
    common::rotate_held<2>(x);
    common::rotate_held<4>(x);
    common::rotate_held<8>(x);
    common::rotate_lanes(x, 1);
    common::rotate_lanes(x, 2);
    common::rotate_held<16>(x);
  }
  float largest = 0.f;
#pragma unroll
  for (int n = 0; n < 2 * kPairs; ++n) largest = ptx::max_nan(largest, fabsf(x[n]));
  largest = ptx::max_nan(largest, __shfl_xor_sync(common::kAllLanes, largest, 1));
  largest = ptx::max_nan(largest, __shfl_xor_sync(common::kAllLanes, largest, 2));
  const QueryUnit unit = query_unit(largest);
  float squares = 0.f;
  float errors = 0.f;
#pragma unroll
  for (int chunk = 0; chunk < Traits::kChunks; ++chunk) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      float rounded[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float divided = x[2 * Traits::kPairs * chunk + 4 * word + i] * unit.divide;
        rounded[i] = unit.known ? code_of(unit, divided) : 0.f;
        add_squares(unit, divided, rounded[i], squares, errors);
      }
      codes[chunk][word] = pack_codes(rounded);
    }
  }
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    squares += __shfl_xor_sync(common::kAllLanes, squares, lanes);
    errors += __shfl_xor_sync(common::kAllLanes, errors, lanes);
  }
  return query_bound(unit, squares, errors, rotated ? 1.f / Traits::kDim : 1.f);
}

template <class Traits>
__device__ __forceinline__ void load_columns(Columns<Traits>& q, const ScoreParams& p,
                                             const RequestRecord& r, int head_k, int lane) {
  if constexpr (!Traits::kFilter) {
    load_queries<Traits>(q, p, r, head_k, lane);
  } else {
    Queries<Traits> items;
    load_queries<Traits>(items, p, r, head_k, lane);
#pragma unroll
    for (int tile = 0; tile < Traits::kTiles; ++tile) {
      const QueryBound mine =
          code_column<Traits>(q.codes[tile], items.fragments[tile], p.bounds.rotated != 0);
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // lane 4 c holds column c
        const int from = ((lane & 3) * 2 + i) * 4;
        q.bound[tile][i] = {__shfl_sync(common::kAllLanes, mine.scale, from),
                            __shfl_sync(common::kAllLanes, mine.norm, from),
                            __shfl_sync(common::kAllLanes, mine.error, from)};
        q.limit[tile][i] = items.limit[tile][i];
      }
    }
    q.min_limit = items.min_limit;
  }
}

/// Of the keys that a lane holds products of: [m16 tile][row half].
struct KeyBounds {
  KeyBound of[2][2];
};

/// `first`: the warp's first key, counted from the first of the step's bounds.
template <class Traits>
__device__ __forceinline__ void read_bounds(KeyBounds& to, const float* bounds, int first, int lane,
                                            bool rotated) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* bound = bounds + (first + i * 8 + lane / 4) / kBoundRows * 3;
    to.of[i / 2][i & 1] = key_bound(bound[0], bound[1], bound[2], Traits::kDim, rotated);
  }
}

/// As reduce_keys: the largest lower bounds, then the largest upper ones.
template <class Traits>
__device__ __forceinline__ void reduce_filter(float (&best)[2 * Traits::kTiles][2],
                                              const StepKeys<Traits>& keys, const KeyBounds& bounds,
                                              const CodedQueries<Traits>& q, int first,
                                              unsigned bad, int lane) {
  constexpr float kNegInf = -INFINITY;
  const bool masked = first + Traits::kKeys > q.min_limit || bad != 0;
#pragma unroll
  for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile) {
    float lower[2] = {kNegInf, kNegInf};
    float upper[2] = {kNegInf, kNegInf};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      std::int32_t d[4] = {0, 0, 0, 0};
#pragma unroll
      for (int chunk = 0; chunk < Traits::kChunks; ++chunk) {
        const uint4& u = keys.items[tile][0][chunk];
        const uint4& l = keys.items[tile][1][chunk];
        const std::uint32_t(&b)[4] = q.codes[column_tile][chunk];
        ptx::mma_m16n8k32_s8(d, {u.x, l.x, u.y, l.y}, b[0], b[1]);
        ptx::mma_m16n8k32_s8(d, {u.z, l.z, u.w, l.w}, b[2], b[3]);
      }
      float low[4], high[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Interval x = interval(d[i], q.bound[column_tile][i & 1], bounds.of[tile][i / 2]);
        low[i] = x.lower;
        high[i] = x.upper;
      }
      if (masked) {
        mask_scores<Traits>(low, q, column_tile, tile, first, bad, lane);
        mask_scores<Traits>(high, q, column_tile, tile, first, bad, lane);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        lower[i] = fmaxf(lower[i], fmaxf(low[i], low[2 + i]));
        upper[i] = fmaxf(upper[i], fmaxf(high[i], high[2 + i]));
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      best[column_tile][i] = column_max(lower[i]);
      best[Traits::kTiles + column_tile][i] = column_max(upper[i]);
    }
  }
}

}  // namespace msa::cuda::common::decode
