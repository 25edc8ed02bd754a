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

/// Logarithm of the columns of a part: divisions take long.
__device__ __forceinline__ int part_shift_of(const Shares& shares) {
  return __ffs(shares.part_dims) - 1;
}

/// The column of an item; items come in pairs of neighbours. part_dims is 1 << part_shift.
__device__ __forceinline__ int share_column(int offset, int part_shift) {
  const int part = offset >> part_shift << part_shift;
  const int member = (offset - part) >> (part_shift - 2);
  const int own = offset & ((1 << (part_shift - 2)) - 1);
  return part + own / 2 * 8 + member * 2 + own % 2;
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

/// What a thread has of kParts parts of kDims columns, each in steps of a size that its quad agrees
/// on. All lanes of a warp make theirs together. kMended: who adds shares up has rows that are not
/// finite computed again, so that a part with such numbers may be NaN as a whole.
template <int kDims, int kParts = 1, bool kMended = false>
class PackedShare {
 public:
  static constexpr int kOwn = kDims / 4;  // of a part

  __device__ __forceinline__ explicit PackedShare(const float (&own)[kParts][kOwn]) {
    float peaks[kParts];
    bool finite = true;
#pragma unroll
    for (int part = 0; part < kParts; ++part) peaks[part] = peak_of(own[part]);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      peaks[part] = quad::max_nan(peaks[part]);
      finite = finite && peaks[part] < INFINITY;
    }
    if (!kMended && warp::any(!finite)) {
      pack_all(own);
      return;
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const Steps steps = steps_of(bound_of(peaks[part]));
#pragma unroll
      for (int i = 0; i < kOwn / 2; ++i)
        pairs_[part][i] = pack_steps(own[part][2 * i], own[part][2 * i + 1], steps.per_one);
      sizes_[part] = steps.step;
    }
  }

  /// Part `own` as part `part` of `row` of the shares; rows have `dims` columns.
  __device__ __forceinline__ void store(const Shares& to, std::int64_t row, int dims, int part,
                                        int member, int own = 0) const {
    const std::uint32_t(&pairs)[kOwn / 2] = pairs_[own];
    std::uint16_t* at = to.steps + row * dims + share_offset(part, kDims, member);
    if constexpr (kDims % 32 == 0) {
#pragma unroll
      for (int i = 0; i < kOwn / 2; i += 4)
        reinterpret_cast<uint4*>(at)[i / 4] =
            make_uint4(pairs[i], pairs[i + 1], pairs[i + 2], pairs[i + 3]);
    } else {
#pragma unroll
      for (int i = 0; i < kOwn / 2; i += 2)
        reinterpret_cast<uint2*>(at)[i / 2] = make_uint2(pairs[i], pairs[i + 1]);
    }
    if (member == 0) to.sizes[row * (dims / kDims) + part] = sizes_[own];
  }

 private:
  /// By two chains: one would wait for each of its members.
  __device__ __forceinline__ static float peak_of(const float (&own)[kOwn]) {
    float peaks[2] = {fabsf(own[0]), fabsf(own[1])};
#pragma unroll
    for (int i = 2; i < kOwn; ++i) peaks[i % 2] = ptx::max_nan(peaks[i % 2], fabsf(own[i]));
    return ptx::max_nan(peaks[0], peaks[1]);
  }

  /// Some number is not finite.
  __device__ __forceinline__ void pack_all(const float (&own)[kParts][kOwn]) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      float peak = 0.0f;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (fabsf(own[part][i]) < INFINITY) peak = fmaxf(peak, fabsf(own[part][i]));
      }
      const Steps steps = steps_of(bound_of(quad::max(peak)));
#pragma unroll
      for (int i = 0; i < kOwn / 2; ++i)
        pairs_[part][i] = pack_odd(own[part][2 * i], own[part][2 * i + 1], steps.per_one);
      sizes_[part] = -steps.step;
    }
  }

  /// Numbers that are too small for steps are 0.
  __device__ __forceinline__ static float bound_of(float peak) {
    return peak < kSmallestPeak ? 0.0f : peak;
  }

  std::uint32_t pairs_[kParts][kOwn / 2];
  float sizes_[kParts];
};

}  // namespace msa::cuda::common::backward
