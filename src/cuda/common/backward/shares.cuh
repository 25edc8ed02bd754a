// SPDX-License-Identifier: MIT
// In which order a row of a share of dq is stored: as the threads hold it that make it. A row is
// parts of so many columns, one warp's each; in a part the four threads of a quad lie side by side,
// each with the two neighbours that it has of every 8 columns.
// A part whose steps have a negative size has numbers that are not finite: code 0, which no step
// has.
#pragma once

#include "cuda/common/backward/params.h"
#include "cuda/common/steps.cuh"
#include "cuda/common/tile/fragment.cuh"
#include "cuda/common/warp.cuh"

namespace msa::cuda::common::backward {

/// Where the first item of thread `member` of the quad lies in a row; the others follow.
__device__ __forceinline__ int share_offset(int part, int part_dims, int member) {
  return part * part_dims + member * (part_dims / 4);
}

/// The column of an item; items come in pairs of neighbours.
__device__ __forceinline__ int share_column(int offset, int part_dims) {
  const int part = offset / part_dims;
  const int inside = offset - part * part_dims;
  const int member = inside / (part_dims / 4);
  const int own = inside - member * (part_dims / 4);
  return part * part_dims + own / 2 * 8 + member * 2 + own % 2;
}

/// Steps of a part with numbers that are not finite.
__device__ __forceinline__ std::uint32_t pack_odd(float lo, float hi, float per_one) {
  const bool numbers[2] = {fabsf(lo) < INFINITY, fabsf(hi) < INFINITY};
  const std::uint32_t pair = pack_steps(numbers[0] ? lo : 0.0f, numbers[1] ? hi : 0.0f, per_one);
  return pair & ((numbers[0] ? 0xffffu : 0u) | (numbers[1] ? 0xffff0000u : 0u));
}

__device__ __forceinline__ float2 unpack_odd(std::uint32_t pair) {
  const float2 values = unpack_steps(pair);
  return make_float2((pair & 0xffffu) == 0 ? NAN : values.x,
                     (pair & 0xffff0000u) == 0 ? NAN : values.y);
}

/// What a thread has of a part of kDims columns, in steps of a size that its quad agrees on. All
/// lanes of a warp make theirs together.
template <int kDims>
class PackedShare {
 public:
  __device__ __forceinline__ explicit PackedShare(const float (&own)[kDims / 4]) {
    float peak = 0.0f;
#pragma unroll
    for (int i = 0; i < kDims / 4; ++i) peak = ptx::max_nan(peak, fabsf(own[i]));
    peak = quad::max_nan(peak);
    if (warp::any(!(peak < INFINITY))) {
      pack_all(own);
      return;
    }
    const Steps steps = steps_of(bound_of(peak));
#pragma unroll
    for (int i = 0; i < kDims / 8; ++i)
      pairs_[i] = pack_steps(own[2 * i], own[2 * i + 1], steps.per_one);
    size_ = steps.step;
  }

  /// `row` of the shares; rows have `dims` columns.
  __device__ __forceinline__ void store(const Shares& to, std::int64_t row, int dims, int part,
                                        int member) const {
    std::uint16_t* at = to.steps + row * dims + share_offset(part, kDims, member);
    if constexpr (kDims % 32 == 0) {
#pragma unroll
      for (int i = 0; i < kDims / 8; i += 4)
        reinterpret_cast<uint4*>(at)[i / 4] =
            make_uint4(pairs_[i], pairs_[i + 1], pairs_[i + 2], pairs_[i + 3]);
    } else {
#pragma unroll
      for (int i = 0; i < kDims / 8; i += 2)
        reinterpret_cast<uint2*>(at)[i / 2] = make_uint2(pairs_[i], pairs_[i + 1]);
    }
    if (member == 0) to.sizes[row * (dims / kDims) + part] = size_;
  }

 private:
  /// Some number is not finite.
  __device__ __forceinline__ void pack_all(const float (&own)[kDims / 4]) {
    float peak = 0.0f;
#pragma unroll
    for (int i = 0; i < kDims / 4; ++i) {
      if (fabsf(own[i]) < INFINITY) peak = fmaxf(peak, fabsf(own[i]));
    }
    const Steps steps = steps_of(bound_of(quad::max(peak)));
#pragma unroll
    for (int i = 0; i < kDims / 8; ++i)
      pairs_[i] = pack_odd(own[2 * i], own[2 * i + 1], steps.per_one);
    size_ = -steps.step;
  }

  /// Numbers that are too small for steps are 0.
  __device__ __forceinline__ static float bound_of(float peak) {
    return peak < kSmallestPeak ? 0.0f : peak;
  }

  std::uint32_t pairs_[kDims / 8];
  float size_;
};

}  // namespace msa::cuda::common::backward
