// SPDX-License-Identifier: MIT
// A step by wgmma: two warpgroups with 64 keys each. A wgmma accumulator has the order of mma.sync,
// so that a warp has the very 16 keys, in the same registers, that it has in mma/backward, and
// either may go on where the other stopped. Products run beside what is made of those before:
// weights beside dP, dS beside dV, and the scores of the next step stand behind dK. Rows that do
// not see the whole tile have zeros in place of the weights of the other keys, which is enough
// while q and dout are finite.
#pragma once

#include "cuda/mma/backward/consumer.cuh"
#include "cuda/sm90/backward/traits.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/tile/fragment.cuh"
#include "cuda/sm90/tile/product.cuh"

namespace msa::cuda::sm90::backward {

class Step {
 public:
  using Item = Traits::Item;
  using RowInfo = Traits::RowInfo;
  using Sums = mma::backward::Consumer<Traits>;
  using Position = RingPosition<Traits::kStages>;

  __device__ __forceinline__ Step(Traits::Shared& shared, Sums& sums)
      : shared_(shared),
        sums_(sums),
        warp_(common::warp::number()),
        lane_(static_cast<int>(threadIdx.x % 32)) {}

  /// The scores of a step, whose rows have arrived.
  __device__ __forceinline__ void begin(int stage) {
    ptx::wgmma_fence();
    multiply_step(shared_.k, shared_.q[stage], s_);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(s_);
  }

  /// A step whose scores are there; its stage is given back, and the scores of the next, if there
  /// are `more`, are multiplied behind its products. kMasked: some rows do not see all keys.
  template <bool kMasked>
  __device__ __forceinline__ void run(Position at, float scale_log2, bool more) {
    const RowInfo& rows = shared_.infos[at.stage];
    float dp[kScores];  // keys are the rows of both
    ptx::wgmma_fence();
    multiply_step(shared_.v, shared_.dout[at.stage], dp);
    std::uint32_t p[kScores / 2];
    weigh<kMasked>(rows, scale_log2, s_, p);
    add_rows(p, shared_.dout[at.stage], sums_.dv_);
    ptx::wgmma_wait_group<1>();
    ptx::keep_accumulator(dp);
    std::uint32_t ds[kScores / 2];
    derive<kMasked>(rows, s_, dp, ds);
    if (!kMasked && more) {
      Position next = at;
      next.advance();
      shared_.ring.wait_full(next);
      add_rows(ds, shared_.q[at.stage], sums_.dk_);
      multiply_step(shared_.k, shared_.q[next.stage], s_);
      ptx::wgmma_wait_group<1>();
      ptx::keep_accumulator(sums_.dv_);
      ptx::keep_accumulator(sums_.dk_);
      shared_.ring.release(at);
      ptx::wgmma_wait_group<0>();
      ptx::keep_accumulator(s_);
    } else {
      add_rows(ds, shared_.q[at.stage], sums_.dk_);
      ptx::wgmma_wait_group<0>();
      ptx::keep_accumulator(sums_.dv_);
      ptx::keep_accumulator(sums_.dk_);
      shared_.ring.release(at);
      if (!more) return;
      at.advance();
      shared_.ring.wait_full(at);
      begin(at.stage);
    }
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
  template <bool kMasked>
  __device__ __forceinline__ void weigh(const RowInfo& rows, float scale_log2, float (&s)[kScores],
                                        std::uint32_t (&p)[kScores / 2]) const {
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const float2 lse = pair_of(rows.lse, n);
      const float offset[2] = {-lse.x * common::kLog2e, -lse.y * common::kLog2e};
#pragma unroll
      for (int x = 0; x < 4; ++x)
        s[4 * n + x] = ptx::ex2(fmaf(s[4 * n + x], scale_log2, offset[x % 2]));
      if constexpr (kMasked) mask(rows, n, &s[4 * n]);
      p[2 * n] = ptx::cvt_pack<Item>(s[4 * n], s[4 * n + 1]);
      p[2 * n + 1] = ptx::cvt_pack<Item>(s[4 * n + 2], s[4 * n + 3]);
    }
  }

  /// Gradients of scores, packed.
  template <bool kMasked>
  __device__ __forceinline__ void derive(const RowInfo& rows, const float (&weights)[kScores],
                                         const float (&dp)[kScores],
                                         std::uint32_t (&ds)[kScores / 2]) const {
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const float2 delta = pair_of(rows.delta, n);
      float own[4];
#pragma unroll
      for (int x = 0; x < 4; ++x)
        own[x] = weights[4 * n + x] * (dp[4 * n + x] - (x % 2 == 0 ? delta.x : delta.y));
      if constexpr (kMasked) mask(rows, n, own);
      ds[2 * n] = ptx::cvt_pack<Item>(own[0], own[1]);
      ds[2 * n + 1] = ptx::cvt_pack<Item>(own[2], own[3]);
    }
  }

  /// Of two keys and the two rows that are this thread's of 8: zeros where a row does not see a
  /// key. Whatever is there, for hidden keys may be NaN.
  __device__ __forceinline__ void mask(const RowInfo& rows, int n, float* own) const {
    const int2 limits = *reinterpret_cast<const int2*>(rows.limit + 8 * n + fragment_column(lane_));
    const int key = 16 * warp_ + lane_ / 4;
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      if (key + x / 2 * 8 >= (x % 2 == 0 ? limits.x : limits.y)) own[x] = 0.0f;
    }
  }

  /// Of the two rows that are this thread's of every 8.
  __device__ __forceinline__ float2 pair_of(const float (&values)[kRows], int n) const {
    return *reinterpret_cast<const float2*>(values + 8 * n + fragment_column(lane_));
  }

  Traits::Shared& shared_;
  Sums& sums_;
  const int warp_;
  const int lane_;
  float s_[kScores];  // scores, then weights
};

}  // namespace msa::cuda::sm90::backward
