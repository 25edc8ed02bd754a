// SPDX-License-Identifier: MIT
// What a consumer warp keeps of 16 query heads: the query, the softmax state, the output.
#pragma once

#include "cuda/common/decode/attend/item.cuh"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/tile/fragment.cuh"
#include "cuda/common/warp.cuh"

namespace msa::cuda::common::decode {

/// Of queries in bf16 over codes: what scores of the rows are multiplied by where their fragments
/// are f16; else 0.
template <bool kNarrows>
struct Narrow {};
template <>
struct Narrow<true> {
  std::uint32_t units;
};

/// Over codes: what the output counts in, a power of two for each row. Weights times the
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
struct WarpState : Units<Traits::kUnits>, Narrow<Traits::kNarrows> {
  std::uint32_t q[Traits::kDim / 16][4];  // A fragments
  float out[Traits::kDimTiles][4];
  float best[2];
  float sum[2];
};

/// Queries in bf16 become f16 where that is exact, each row times a power of two: items up to 2^32
/// below the largest of their row fit, in a row with items that are not finite those of f16.
/// Checked first, then made: registers are few.
template <class Traits>
__device__ __forceinline__ void narrow_query(WarpState<Traits>& s) {
  constexpr int kTop = 15;  // exponent of the largest item
  constexpr int kPairs = Traits::kDim / 8;
  float scale[2];
  bool exact = true;
  s.units = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = 0.f;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float2 x = ptx::cvt_unpack<__nv_bfloat16>(s.q[i / 2][i % 2 * 2 + half]);
      largest = ptx::max_nan(largest, ptx::max_nan(fabsf(x.x), fabsf(x.y)));
    }
    largest = quad::max_nan(largest);
    const int exponent = (__float_as_int(largest) >> 23) - 127;
    const bool scaled = largest > 0.f && largest < INFINITY;
    exact &= !scaled || (exponent >= -100 && exponent <= 100);
    const int shift = scaled ? kTop - min(max(exponent, -100), 100) : 0;
    scale[half] = __int_as_float((127 + shift) << 23);
    s.units |= static_cast<std::uint32_t>(127 - shift) << (8 * half);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float2 x = ptx::cvt_unpack<__nv_bfloat16>(s.q[i / 2][i % 2 * 2 + half]);
      const float2 back =
          ptx::cvt_unpack<__half>(ptx::cvt_pack<__half>(x.x * scale[half], x.y * scale[half]));
      exact &= (back.x == x.x * scale[half] || !(fabsf(x.x) < INFINITY)) &&
               (back.y == x.y * scale[half] || !(fabsf(x.y) < INFINITY));
    }
  }
  if (!__all_sync(common::kAllLanes, exact)) {
    s.units = 0;
    return;
  }
#pragma unroll
  for (int i = 0; i < 2 * kPairs; ++i) {
    std::uint32_t& pair = s.q[i / 4][i % 4];
    const float2 x = ptx::cvt_unpack<__nv_bfloat16>(pair);
    pair = ptx::cvt_pack<__half>(x.x * scale[i % 2], x.y * scale[i % 2]);
  }
}

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
  if constexpr (Traits::kNarrows) narrow_query<Traits>(s);
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
