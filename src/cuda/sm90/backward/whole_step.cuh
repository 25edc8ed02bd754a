// SPDX-License-Identifier: MIT
// A step whose rows all see the whole tile, by wgmma: two warpgroups with 64 keys each. A wgmma
// accumulator has the order of mma.sync, so that a warp has the very 16 keys, in the same
// registers, that it has in mma/backward, and either may go on where the other stopped. Products
// run beside what is made of those before: weights beside dP, dS beside dV, dQ behind dK.
#pragma once

#include "cuda/common/backward/shares.cuh"
#include "cuda/mma/backward/consumer.cuh"
#include "cuda/sm90/backward/traits.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/ptx/matrix.cuh"
#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/tile/descriptor.cuh"
#include "cuda/sm90/tile/fragment.cuh"
#include "cuda/sm90/tile/swizzle.cuh"

namespace msa::cuda::sm90::backward {

template <Wanted wanted>
class WholeStep {
 public:
  using Item = Traits::Item;
  using Shared = Traits::Shared;
  using RowInfo = Traits::RowInfo;
  using Consumer = mma::backward::Consumer<Traits>;

  __device__ __forceinline__ WholeStep(Shared& shared, Consumer& sums)
      : shared_(shared),
        sums_(sums),
        warp_(__shfl_sync(common::kAllLanes, static_cast<int>(threadIdx.x), 0) / 32),
        lane_(static_cast<int>(threadIdx.x % 32)) {}

  /// All consumers; the rows of the step have arrived.
  __device__ __forceinline__ void run(const RowInfo& rows, int stage, float scale_log2,
                                      const common::backward::Shares& to) {
    sums_.locate();
    float s[kScores];   // scores, then weights; then dq
    float dp[kScores];  // keys are the rows of both
    ptx::wgmma_fence();
    multiply_rows(shared_.k, shared_.q[stage], s);
    multiply_rows(shared_.v, shared_.dout[stage], dp);
    ptx::wgmma_wait_group<1>();
    ptx::keep_accumulator(s);
    std::uint32_t p[kScores / 2];
    weigh(rows, scale_log2, s, p);
    if constexpr (wanted.keys) {
      add_rows(p, shared_.dout[stage], sums_.dv_);
      ptx::wgmma_wait_group<1>();
    } else {
      ptx::wgmma_wait_group<0>();
    }
    ptx::keep_accumulator(dp);
    std::uint32_t ds[kScores / 2];
    float rest[kScores / 2];
    derive(rows, s, dp, ds, rest);
    if constexpr (wanted.queries) {
      store_gradients(ds);
      ptx::fence_proxy_async_shared();
    }
    if constexpr (wanted.keys) add_rows(ds, shared_.q[stage], sums_.dk_);
    if constexpr (wanted.queries) {
      if (shared_.alike != 0) sums_.tell_rest(rest);
      Traits::sync();  // dS is there
      multiply_keys(s);
    }
    ptx::wgmma_wait_group<0>();
    if constexpr (wanted.keys) {
      ptx::keep_accumulator(sums_.dv_);
      ptx::keep_accumulator(sums_.dk_);
    }
    if constexpr (wanted.queries) {
      ptx::keep_accumulator(s);
      store_share(rows, to, s);
    }
  }

 private:
  static constexpr int kRows = Traits::kRows;
  static constexpr int kKeys = Traits::kKeys;
  static constexpr int kWarpgroupKeys = 64;
  static constexpr int kScores = kRows / 2;
  static constexpr int kParts = kPanelItems / Traits::kPartDims;  // of a warp's 64 columns of dq
  static constexpr int kOwn = Traits::kPartDims / 4;              // items of a thread in a part
  static_assert(kRows == 64 && kKeys == 2 * kWarpgroupKeys && Traits::kHeadDim == 2 * kPanelItems,
                "a warpgroup has half of the keys, and half of the columns of dq");

  __device__ __forceinline__ int warpgroup() const { return warp_ / 4; }

  /// d = the warpgroup's keys times the step's rows, transposed; a group of its own.
  __device__ __forceinline__ void multiply_rows(const std::uint8_t* keys, const std::uint8_t* rows,
                                                float (&d)[kScores]) const {
    const std::uint64_t a =
        descriptor_k_major(keys + warpgroup() * kWarpgroupKeys * kPanelRowBytes);
    const std::uint64_t b = descriptor_k_major(rows);
#pragma unroll
    for (int k = 0; k < Traits::kHeadDim / 16; ++k) {
      const std::uint64_t inside = (k & 3) * kDescriptorStepK;
      const int panel = k >> 2;
      ptx::wgmma_ss<Item, ptx::Major::K>(d, a + panel * (kKeys * kPanelRowBytes >> 4) + inside,
                                         b + panel * (kRows * kPanelRowBytes >> 4) + inside,
                                         k != 0);
    }
    ptx::wgmma_commit_group();
  }

  /// sums += a times the step's rows; a group of its own.
  __device__ __forceinline__ static void add_rows(const std::uint32_t (&a)[kScores / 2],
                                                  const std::uint8_t* rows,
                                                  float (&sums)[Traits::kHeadDim / 2]) {
    const std::uint64_t b = descriptor_mn_major(rows, kRows * kPanelRowBytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kRows / 16; ++k)
      ptx::wgmma_rs<Item, ptx::Major::MN>(sums, a + 4 * k, b + k * kDescriptorStepMN, true);
    ptx::wgmma_commit_group();
  }

  /// d = dS of all keys times these, the warpgroup's columns; a group of its own.
  __device__ __forceinline__ void multiply_keys(float (&d)[kScores]) const {
    const std::uint64_t a = descriptor_mn_major(shared_.ds, kKeys * kPanelRowBytes);
    const std::uint64_t b = descriptor_mn_major(shared_.k + warpgroup() * kKeys * kPanelRowBytes,
                                                kKeys * kPanelRowBytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      ptx::wgmma_m64n64k16_ss<Item, ptx::Major::MN, ptx::Major::MN>(
          d, a + k * kDescriptorStepMN, b + k * kDescriptorStepMN, k != 0);
    }
    ptx::wgmma_commit_group();
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

  /// Gradients of scores, packed, and what rounding took from the thread's two keys of each row.
  __device__ __forceinline__ void derive(const RowInfo& rows, const float (&weights)[kScores],
                                         const float (&dp)[kScores],
                                         std::uint32_t (&ds)[kScores / 2],
                                         float (&rest)[kScores / 2]) const {
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const float2 delta = pair_of(rows.delta, n);
      rest[2 * n] = rest[2 * n + 1] = 0.0f;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = 4 * n + 2 * half;
        const float exact[2] = {weights[at] * (dp[at] - delta.x),
                                weights[at + 1] * (dp[at + 1] - delta.y)};
        ds[2 * n + half] = ptx::cvt_pack<Item>(exact[0], exact[1]);
        if constexpr (wanted.queries) {
          const float2 rounded = ptx::cvt_unpack<Item>(ds[2 * n + half]);
          rest[2 * n] += exact[0] - rounded.x;
          rest[2 * n + 1] += exact[1] - rounded.y;
        }
      }
    }
  }

  /// Of the two rows that are this thread's of every 8.
  __device__ __forceinline__ float2 pair_of(const float (&values)[kRows], int n) const {
    return *reinterpret_cast<const float2*>(values + 8 * n + fragment_column(lane_));
  }

  /// dS, a row a key: 16 keys by 16 rows at a time.
  __device__ __forceinline__ void store_gradients(const std::uint32_t (&ds)[kScores / 2]) const {
    const int key = 16 * warp_ + lane_ % 16;
#pragma unroll
    for (int k = 0; k < kRows / 16; ++k) {
      const std::uint32_t own[4] = {ds[4 * k], ds[4 * k + 1], ds[4 * k + 2], ds[4 * k + 3]};
      ptx::stmatrix_x4(shared_.ds + swizzled_chunk(key, 2 * k + lane_ / 16), own);
    }
  }

  __device__ __forceinline__ void store_share(const RowInfo& rows,
                                              const common::backward::Shares& to,
                                              const float (&dq)[kScores]) const {
    using Packed = common::backward::PackedShare<Traits::kPartDims>;
    float own[2][kParts][kOwn];
    float peaks[2][kParts];
    bool odd = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float rest = shared_.alike != 0 ? rest_of(row_of(half)) : 0.0f;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int i = 0; i < kOwn; i += 2) {
          const int column = part_number(part) * Traits::kPartDims + i * 4 + fragment_column(lane_);
          const float2 mean = *reinterpret_cast<const float2*>(shared_.mean + column);
          const float* from = dq + (part * kOwn + i) * 2 + 2 * half;
          own[half][part][i] = fmaf(rest, mean.x, from[0]);
          own[half][part][i + 1] = fmaf(rest, mean.y, from[1]);
        }
        peaks[half][part] = Packed::peak_of(own[half][part]);
        odd |= Packed::is_odd(peaks[half][part]);
      }
    }
    odd = common::warp::any(odd);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t share = rows.share[row_of(half)];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const Packed packed(own[half][part], peaks[half][part], odd);
        if (share >= 0) packed.store(to, share, Traits::kHeadDim, part_number(part), lane_ % 4);
      }
    }
  }

  /// This thread's rows of dq, and the number of a part of the warpgroup's columns.
  __device__ __forceinline__ int row_of(int half) const {
    return warp_ % 4 * 16 + lane_ / 4 + 8 * half;
  }
  __device__ __forceinline__ int part_number(int part) const { return warpgroup() * kParts + part; }

  __device__ __forceinline__ float rest_of(int row) const {
    float rest = 0.0f;
#pragma unroll
    for (int w = 0; w < Traits::kWarps; ++w) rest += shared_.rest[w][row];
    return rest;
  }

  Shared& shared_;
  Consumer& sums_;
  const int warp_;
  const int lane_;
};

}  // namespace msa::cuda::sm90::backward
