// SPDX-License-Identifier: MIT
// The tile's share of dq: dS of all warps times the keys. A warp has 32 rows of the step and some
// of the columns. Sums of dS over a row are small beside its items, those of an attention that is
// whole even 0: what rounding took from dS would be multiplied by what keys have in common. It is
// therefore given back, times the mean of the tile's keys; not to rows that see some of them alone,
// of which it may not be the mean.
#pragma once

#include "cuda/common/backward/shares.cuh"
#include "cuda/common/steps.cuh"
#include "cuda/common/tile/fragment.cuh"
#include "cuda/common/tile/swizzle.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/mma/backward/traits.cuh"
#include "cuda/mma/tile/multiply.cuh"

namespace msa::cuda::mma::backward {

template <class Traits>
class QueryShare {
 public:
  using Item = typename Traits::Item;
  using Shared = typename Traits::Shared;
  using RowInfo = typename Traits::RowInfo;
  static constexpr int kDims = Traits::kPartDims;
  static constexpr int kSums = kDims / 2;  // of 16 rows

  __device__ __forceinline__ explicit QueryShare(const Shared& shared)
      : shared_(shared),
        warp_(__shfl_sync(common::kAllLanes, static_cast<int>(threadIdx.x), 0) / 32),
        lane_(ptx::laneid()) {}

  template <bool kMasked>
  __device__ __forceinline__ void run(const RowInfo& rows, const common::backward::Shares& to) {
    float sums[2][kSums];
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[t][i] = 0.0f;
    }
    if constexpr (kMasked) {
#pragma unroll 1
      for (int t = 0; t < 2; ++t) {
        float own[kSums] = {};
        multiply_seen(rows, t, own);
        store<kMasked>(rows, to, t, own);
      }
    } else {
      multiply_all(sums);
#pragma unroll
      for (int t = 0; t < 2; ++t) store<kMasked>(rows, to, t, sums[t]);
    }
  }

 private:
  __device__ __forceinline__ int part() const { return warp_ / Traits::kRowGroups; }
  /// First row of the warp's 16 rows `t`.
  __device__ __forceinline__ int first_row(int t) const {
    return warp_ % Traits::kRowGroups * 32 + 16 * t;
  }

  /// 16 rows times 16 keys of dS, which lies a row a key.
  __device__ __forceinline__ void load_ds(std::uint32_t (&a)[4], int t, int k) const {
    const int key = 16 * k + lane_ % 8 + lane_ / 16 * 8;
    const int chunk = first_row(t) / 8 + lane_ / 8 % 2;
    const int at =
        Traits::kRows == 64 ? common::swizzled_chunk(key, chunk) : common::packed_chunk(key, chunk);
    ptx::ldmatrix_x4_trans(a, ptx::cvta_to_shared(shared_.ds) + at);
  }

  /// 16 keys times columns 16 n of the part.
  __device__ __forceinline__ void load_keys(std::uint32_t (&b)[4], int k, int n) const {
    const int chunk = (part() * kDims + 16 * n) / 8 + lane_ / 16;
    ptx::ldmatrix_x4_trans(b, ptx::cvta_to_shared(shared_.k) + chunk / 8 * Traits::kKeys * 128 +
                                  common::swizzled_chunk(16 * k + lane_ % 16, chunk % 8));
  }

  __device__ __forceinline__ void multiply_all(float (&sums)[2][kSums]) const {
#pragma unroll
    for (int k = 0; k < Traits::kKeys / 16; ++k) {
      std::uint32_t a[2][4];
      load_ds(a[0], 0, k);
      load_ds(a[1], 1, k);
#pragma unroll
      for (int n = 0; n < kDims / 16; ++n) {
        std::uint32_t b[4];
        load_keys(b, k, n);
        multiply_columns<Item>(sums[0], n, a[0], b);
        multiply_columns<Item>(sums[1], n, a[1], b);
      }
    }
  }

  /// 16 rows, each with the keys that it sees alone: 0 * NaN is NaN. Rows that see equally many
  /// are multiplied together.
  __device__ __forceinline__ void multiply_seen(const RowInfo& rows, int t,
                                                float (&sums)[kSums]) const {
    const int* limits = rows.limit + first_row(t);
    common::warp::for_each_alike(limits[lane_ % 16], 0xffffu, [&](int limit, unsigned alike) {
      float d[kSums] = {};
      for (int k = 0; k < Traits::kKeys / 16 && 16 * k < limit; ++k) {
        const int key = 16 * k + common::fragment_column(lane_);
        const std::uint32_t low = seen(key, limit);
        const std::uint32_t high = seen(key + 8, limit);
        std::uint32_t a[4];
        load_ds(a, t, k);
#pragma unroll
        for (int n = 0; n < kDims / 16; ++n) {
          std::uint32_t b[4];
          load_keys(b, k, n);
          b[0] &= low;
          b[1] &= high;
          b[2] &= low;
          b[3] &= high;
          multiply_columns<Item>(d, n, a, b);
        }
      }
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        if ((alike >> (lane_ / 4 + i / 2 % 2 * 8) & 1) != 0) sums[i] = d[i];
      }
    });
  }

  /// All bits of the halves of a word whose keys lie below the limit.
  __device__ __forceinline__ static std::uint32_t seen(int key, int limit) {
    return key + 1 < limit ? 0xffffffffu : (key < limit ? 0xffffu : 0u);
  }

  template <bool kMasked>
  __device__ __forceinline__ void store(const RowInfo& rows, const common::backward::Shares& to,
                                        int t, const float (&sums)[kSums]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row(t) + lane_ / 4 + 8 * half;
      float own[kDims / 4];
#pragma unroll
      for (int i = 0; i < kDims / 4; ++i) own[i] = sums[i / 2 * 4 + 2 * half + i % 2];
      if constexpr (!kMasked) give_back(row, own);
      const std::int64_t share = rows.share[row];
      const float size = pack(own, [&](const std::uint32_t(&pairs)[kDims / 8]) {
        if (share < 0) return;
        auto* at =
            reinterpret_cast<uint2*>(to.steps + share * Traits::kHeadDim +
                                     common::backward::share_offset(part(), kDims, lane_ % 4));
#pragma unroll
        for (int i = 0; i < kDims / 16; ++i) at[i] = make_uint2(pairs[2 * i], pairs[2 * i + 1]);
      });
      if (share >= 0 && lane_ % 4 == 0) to.sizes[share * Traits::kParts + part()] = size;
    }
  }

  __device__ __forceinline__ void give_back(int row, float (&own)[kDims / 4]) const {
    float rest = 0.0f;
#pragma unroll
    for (int w = 0; w < Traits::kWarps; ++w) rest += shared_.rest[w][row];
#pragma unroll
    for (int i = 0; i < kDims / 4; ++i) {
      const int column = part() * kDims + i / 2 * 8 + common::fragment_column(lane_) + i % 2;
      own[i] = fmaf(rest, shared_.mean[column], own[i]);
    }
  }

  /// store(pairs of steps); returns the size of one.
  template <class Store>
  __device__ __forceinline__ static float pack(const float (&own)[kDims / 4], const Store& store) {
    float peak = 0.0f;
#pragma unroll
    for (int i = 0; i < kDims / 4; ++i) peak = ptx::max_nan(peak, fabsf(own[i]));
    peak = common::quad::max_nan(peak);
    std::uint32_t pairs[kDims / 8];
    if (common::warp::any(!(peak < INFINITY))) {
      peak = 0.0f;
#pragma unroll
      for (int i = 0; i < kDims / 4; ++i) {
        if (fabsf(own[i]) < INFINITY) peak = fmaxf(peak, fabsf(own[i]));
      }
      peak = common::quad::max(peak);
      const common::Steps steps = common::steps_of(bound_of(peak));
#pragma unroll
      for (int i = 0; i < kDims / 8; ++i)
        pairs[i] = common::backward::pack_odd(own[2 * i], own[2 * i + 1], steps.per_one);
      store(pairs);
      return -steps.step;
    }
    const common::Steps steps = common::steps_of(bound_of(peak));
#pragma unroll
    for (int i = 0; i < kDims / 8; ++i)
      pairs[i] = common::pack_steps(own[2 * i], own[2 * i + 1], steps.per_one);
    store(pairs);
    return steps.step;
  }

  /// Numbers that are too small for steps are 0.
  __device__ __forceinline__ static float bound_of(float peak) {
    return peak < common::kSmallestPeak ? 0.0f : peak;
  }

  const Shared& shared_;
  const int warp_;
  const int lane_;
};

}  // namespace msa::cuda::mma::backward
