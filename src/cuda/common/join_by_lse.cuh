// SPDX-License-Identifier: MIT
// Shares of a row that were attended apart become one. A share is a logarithm (its largest score,
// or its lse), the sum of exponentials beside it (1 beside an lse) and an output that sum belongs
// to; in the whole it counts 2^(its logarithm - the largest of all). Always in the order of the
// shares: the same bits every time.
#pragma once

#include "cuda/common/number.cuh"
#include "cuda/common/ptx/math.cuh"

namespace msa::cuda::common {

/// Of a row or a share of one; a row that saw nothing has top -inf and sum 0.
struct RowState {
  float top = kMinusInf;
  float sum = 0.0f;
};

/// What a share counts whose logarithm is `top`, where the largest is `whole`; `scale` takes both
/// to base 2. Nothing if it saw nothing, so that only a sum of NaN (a NaN score hides from the
/// maximum) comes through.
__device__ __forceinline__ float share_weight(float top, float whole, float scale) {
  return ptx::ex2((top - (whole == kMinusInf ? 0.0f : whole)) * scale);
}

/// What normalises a weighted output; 0 where nothing was seen, or scores of -inf alone.
__device__ __forceinline__ float inverse_of(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

/// Natural lse of a row whose logarithm, in nats, is `top`.
__device__ __forceinline__ float lse_of(float top, float sum) {
  return sum == 0.0f ? kMinusInf : top + ptx::lg2(sum) * kLn2;
}

/// Joins shares 0 .. count - 1. state_of(i) is asked twice; add(i, weight) adds the output of share
/// i to that of the row.
template <int kUnroll, class StateOf, class Add>
__device__ __forceinline__ RowState join_by_lse(int count, float scale, const StateOf& state_of,
                                                const Add& add) {
  RowState row;
  for (int i = 0; i < count; ++i) row.top = fmaxf(row.top, state_of(i).top);
#pragma unroll kUnroll
  for (int i = 0; i < count; ++i) {
    const RowState share = state_of(i);
    const float weight = share_weight(share.top, row.top, scale);
    row.sum += weight * share.sum;
    add(i, weight);
  }
  return row;
}

}  // namespace msa::cuda::common
