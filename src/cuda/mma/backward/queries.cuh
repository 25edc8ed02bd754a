// SPDX-License-Identifier: MIT
// The tile's share of dq: dS of all warps times the keys. A warp has 32 rows of the step and some
// of the columns. Sums of dS over a row are small beside its items, those of an attention that is
// whole even 0: what rounding took from dS would be multiplied by what keys have in common. It is
// therefore given back, times what the tile's keys have in common (Loader::average).
#pragma once

#include "cuda/common/backward/shares.cuh"
#include "cuda/common/tile/fragment.cuh"
#include "cuda/common/tile/swizzle.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/mma/backward/traits.cuh"
#include "cuda/mma/tile/seen.cuh"

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
      : shared_(shared), warp_(common::warp::number()), lane_(ptx::laneid()) {}

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
        multiply_seen<Item>(
            rows.limit + first_row(t), Traits::kKeys, lane_,
            [&](std::uint32_t(&a)[4], int k) { load_ds(a, t, k); },
            [&](std::uint32_t(&b)[4], int k, int n) { load_keys(b, k, n); }, own);
        store(rows, to, t, own);
      }
    } else {
      multiply_all(sums);
#pragma unroll
      for (int t = 0; t < 2; ++t) store(rows, to, t, sums[t]);
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
    load_columns(b, shared_.k, Traits::kKeys, k, part() * (kDims / 16) + n, lane_);
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

  __device__ __forceinline__ void store(const RowInfo& rows, const common::backward::Shares& to,
                                        int t, const float (&sums)[kSums]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row(t) + lane_ / 4 + 8 * half;
      float own[1][kDims / 4];
#pragma unroll
      for (int i = 0; i < kDims / 4; ++i) own[0][i] = sums[i / 2 * 4 + 2 * half + i % 2];
      give_back(row, own[0]);
      const std::int64_t share = rows.share[row];
      const common::backward::PackedShare<kDims> packed(own);
      if (share >= 0) packed.store(to, share, Traits::kHeadDim, part(), lane_ % 4);
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

  const Shared& shared_;
  const int warp_;
  const int lane_;
};

}  // namespace msa::cuda::mma::backward
