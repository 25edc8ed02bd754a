// SPDX-License-Identifier: MIT
// A step whose rows all see the whole tile, by wgmma: two warpgroups with 64 keys each. A wgmma
// accumulator has the order of mma.sync, so that a warp has the very 16 keys, in the same
// registers, that it has in mma/backward, and either may go on where the other stopped. Products
// run beside what is made of those before: weights beside dP, dS beside dV.
#pragma once

#include "cuda/mma/backward/consumer.cuh"
#include "cuda/sm90/backward/traits.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/tile/fragment.cuh"
#include "cuda/sm90/tile/product.cuh"

namespace msa::cuda::sm90::backward {

class WholeStep {
 public:
  using Item = Traits::Item;
  using RowInfo = Traits::RowInfo;
  using Sums = mma::backward::Consumer<Traits>;

  __device__ __forceinline__ WholeStep(const Traits::Shared& shared, Sums& sums)
      : shared_(shared),
        sums_(sums),
        warp_(__shfl_sync(common::kAllLanes, static_cast<int>(threadIdx.x), 0) / 32),
        lane_(static_cast<int>(threadIdx.x % 32)) {}

  /// A warpgroup; the rows of the step have arrived.
  __device__ __forceinline__ void run(const RowInfo& rows, int stage, float scale_log2) {
    float s[kScores];   // scores, then weights
    float dp[kScores];  // keys are the rows of both
    ptx::wgmma_fence();
    multiply_step(shared_.k, shared_.q[stage], s);
    multiply_step(shared_.v, shared_.dout[stage], dp);
    ptx::wgmma_wait_group<1>();
    ptx::keep_accumulator(s);
    std::uint32_t p[kScores / 2];
    weigh(rows, scale_log2, s, p);
    add_rows(p, shared_.dout[stage], sums_.dv_);
    ptx::wgmma_wait_group<1>();
    ptx::keep_accumulator(dp);
    std::uint32_t ds[kScores / 2];
    derive(rows, s, dp, ds);
    add_rows(ds, shared_.q[stage], sums_.dk_);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(sums_.dv_);
    ptx::keep_accumulator(sums_.dk_);
  }

 private:
  static constexpr int kRows = Traits::kRows;
  static constexpr int kKeys = Traits::kKeys;
  static constexpr int kWarpgroupKeys = 64;
  static constexpr int kScores = kRows / 2;
  static_assert(kRows == 64 && kKeys == 2 * kWarpgroupKeys, "a warpgroup has half of the keys");

  __device__ __forceinline__ int warpgroup() const { return warp_ / 4; }

  /// d = the warpgroup's keys times the step's rows, transposed; a group of its own.
  __device__ __forceinline__ void multiply_step(const std::uint8_t* keys, const std::uint8_t* rows,
                                                float (&d)[kScores]) const {
    multiply_rows<Item, Traits::kHeadDim, kKeys * kPanelRowBytes, kRows * kPanelRowBytes>(
        d, keys + warpgroup() * kWarpgroupKeys * kPanelRowBytes, rows);
  }

  /// sums += a times the step's rows; a group of its own.
  __device__ __forceinline__ static void add_rows(const std::uint32_t (&a)[kScores / 2],
                                                  const std::uint8_t* rows,
                                                  float (&sums)[Traits::kHeadDim / 2]) {
    ptx::wgmma_fence();
    multiply_columns<Item, kRows>(sums, a, rows, true);
  }

  /// Scores become weights, packed, too.
  __device__ __forceinline__ void weigh(const RowInfo& rows, float scale_log2, float (&s)[kScores],
                                        std::uint32_t (&p)[kScores / 2]) const {
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const float2 lse = pair_of(rows.lse, n);
      const float offset[2] = {-lse.x * common::kLog2e, -lse.y * common::kLog2e};
#pragma unroll
      for (int x = 0; x < 4; ++x)
        s[4 * n + x] = ptx::ex2(fmaf(s[4 * n + x], scale_log2, offset[x % 2]));
      p[2 * n] = ptx::cvt_pack<Item>(s[4 * n], s[4 * n + 1]);
      p[2 * n + 1] = ptx::cvt_pack<Item>(s[4 * n + 2], s[4 * n + 3]);
    }
  }

  /// Gradients of scores, packed.
  __device__ __forceinline__ void derive(const RowInfo& rows, const float (&weights)[kScores],
                                         const float (&dp)[kScores],
                                         std::uint32_t (&ds)[kScores / 2]) const {
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const float2 delta = pair_of(rows.delta, n);
#pragma unroll
      for (int at = 4 * n; at < 4 * n + 4; at += 2) {
        ds[at / 2] = ptx::cvt_pack<Item>(weights[at] * (dp[at] - delta.x),
                                         weights[at + 1] * (dp[at + 1] - delta.y));
      }
    }
  }

  /// Of the two rows that are this thread's of every 8.
  __device__ __forceinline__ float2 pair_of(const float (&values)[kRows], int n) const {
    return *reinterpret_cast<const float2*>(values + 8 * n + fragment_column(lane_));
  }

  const Traits::Shared& shared_;
  Sums& sums_;
  const int warp_;
  const int lane_;
};

}  // namespace msa::cuda::sm90::backward
