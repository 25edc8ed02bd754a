// SPDX-License-Identifier: MIT
// What a consumer warp keeps of 16 query heads: the query, the softmax state, the output.
#pragma once

#include "cuda/common/decode/attend/item.cuh"
#include "cuda/common/rows.cuh"

namespace msa::cuda::common::decode {

/// Of f16 over codes: what the output counts in, a power of two for each row. Weights times the
/// scales of values may be anything, which f16 could not hold.
template <bool kCounts>
struct Units {};
template <>
struct Units<true> {
  float unit[2];
};

/// Softmax state and output of the 16 heads over one warp's keys: lanes hold rows lane / 4 and lane
/// / 4 + 8.
template <class Traits>
struct WarpState : Units<Traits::kUnits> {
  std::uint32_t q[Traits::kDim / 16][4];  // A fragments
  float out[Traits::kDimTiles][4];
  float best[2];
  float sum[2];
};

template <class Traits>
__device__ __forceinline__ void load_query(WarpState<Traits>& s, const AttendParams& p,
                                           const Item& item, int lane) {
  // Of a k16 step a lane of a quad holds two pairs of items; where keys are codes they lie side by
  // side, and so do its items of all steps.
  constexpr int kLane = Traits::kCodes ? Traits::kDim / 4 : 2;
  constexpr int kStep = Traits::kCodes ? 4 : 16;
  constexpr int kPart = Traits::kCodes ? 2 : 8;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int member = item.tile * 16 + lane / 4 + half * 8;
    const auto* head =
        common::row_of<typename Traits::Item>(p.q, item.row, item.head * p.group + member) +
        (lane & 3) * kLane;
#pragma unroll
    for (int step = 0; step < Traits::kDim / 16; ++step) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        s.q[step][part * 2 + half] =
            member < p.group
                ? *reinterpret_cast<const std::uint32_t*>(head + step * kStep + part * kPart)
                : 0u;
      }
    }
  }
}

template <class Traits>
__device__ __forceinline__ void reset_output(WarpState<Traits>& s) {
#pragma unroll
  for (int i = 0; i < Traits::kDimTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) s.out[i][j] = 0.f;
  }
  s.best[0] = s.best[1] = -INFINITY;
  s.sum[0] = s.sum[1] = 0.f;
  if constexpr (Traits::kUnits) s.unit[0] = s.unit[1] = 0.f;
}

}  // namespace msa::cuda::common::decode
