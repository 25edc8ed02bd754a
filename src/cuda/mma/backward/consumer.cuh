// SPDX-License-Identifier: MIT
// What a warp does: 16 keys of the tile are its own, and their dk and dv stay in its registers over
// all steps of an item. Keys are the rows of every product, so that weights and the gradients of
// scores are first factors of dv and dk as they leave scores; dS alone goes through shared memory,
// to dq.
#pragma once

#include "cuda/common/tile/fragment.cuh"
#include "cuda/common/tile/swizzle.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/mma/backward/traits.cuh"
#include "cuda/mma/tile/multiply.cuh"

namespace msa::cuda::mma::backward {

template <class Traits>
class Consumer {
 public:
  using Item = typename Traits::Item;
  using Shared = typename Traits::Shared;
  using RowInfo = typename Traits::RowInfo;
  static constexpr int kRows = Traits::kRows;
  static constexpr int kScores = kRows / 2;
  static constexpr int kSums = Traits::kHeadDim / 2;
  static constexpr int kRowSteps = kRows / 16;  // of a product over the rows of a step

  __device__ __forceinline__ explicit Consumer(Shared& shared)
      : shared_(shared),
        warp_(__shfl_sync(common::kAllLanes, static_cast<int>(threadIdx.x) / 32, 0)),
        lane_(static_cast<int>(threadIdx.x) % 32) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) dk_[i] = dv_[i] = 0.0f;
  }

  /// Weights of the step's rows; adds to dv where that is wanted.
  template <bool kMasked>
  __device__ __forceinline__ void weigh(const RowInfo& rows, int stage, float scale_log2,
                                        bool values) {
    multiply_tile(shared_.k, shared_.q[stage], weights_);
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const int row = 8 * n + common::fragment_column(lane_);
      const float offset[2] = {-rows.lse[row] * common::kLog2e,
                               -rows.lse[row + 1] * common::kLog2e};
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        float& weight = weights_[4 * n + x];
        weight = ptx::ex2(fmaf(weight, scale_log2, offset[x % 2]));
        if (kMasked && key_of(x / 2) >= rows.limit[row + x % 2]) weight = 0.0f;
      }
    }
    if (!values) return;
    std::uint32_t p[kRowSteps][4];
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i)
      p[i / 4][i % 4] = ptx::cvt_pack<Item>(weights_[2 * i], weights_[2 * i + 1]);
    add<kMasked>(rows, p, shared_.dout[stage], dv_);
  }

  /// Gradients of scores, into shared memory, too, where dq is wanted; adds to dk where that is.
  template <bool kMasked>
  __device__ __forceinline__ void derive(const RowInfo& rows, int stage, bool keys, bool queries) {
    float dp[kScores];
    multiply_tile(shared_.v, shared_.dout[stage], dp);
    std::uint32_t ds[kRowSteps][4];
    float rest[kRows / 4];
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const int row = 8 * n + common::fragment_column(lane_);
      const float delta[2] = {rows.delta[row], rows.delta[row + 1]};
      rest[2 * n] = rest[2 * n + 1] = 0.0f;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float exact[2];
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          exact[x] = weights_[4 * n + 2 * half + x] * (dp[4 * n + 2 * half + x] - delta[x]);
          if (kMasked && key_of(half) >= rows.limit[row + x]) exact[x] = 0.0f;
        }
        const std::uint32_t pair = ptx::cvt_pack<Item>(exact[0], exact[1]);
        const float2 rounded = ptx::cvt_unpack<Item>(pair);
        rest[2 * n] += exact[0] - rounded.x;
        rest[2 * n + 1] += exact[1] - rounded.y;
        ds[n / 2][n % 2 * 2 + half] = pair;
        if (queries) {
          *reinterpret_cast<std::uint32_t*>(shared_.ds + ds_chunk(key_of(half), n) +
                                            common::fragment_column(lane_) * 2) = pair;
        }
      }
    }
    if (queries) tell_rest(rest);
    if (keys) add<kMasked>(rows, ds, shared_.q[stage], dk_);
  }

  float dk_[kSums];
  float dv_[kSums];

 private:
  /// This thread's key of the tile: that of d[0], or of d[2].
  __device__ __forceinline__ int key_of(int half) const {
    return 16 * warp_ + lane_ / 4 + 8 * half;
  }

  /// Where 8 rows of dS of a key lie.
  __device__ __forceinline__ static int ds_chunk(int key, int rows) {
    return kRows == 64 ? common::swizzled_chunk(key, rows) : common::packed_chunk(key, rows);
  }

  /// d = the warp's 16 rows of `keys` times all rows of `rows`, transposed.
  __device__ __forceinline__ void multiply_tile(const std::uint8_t* keys, const std::uint8_t* rows,
                                                float (&d)[kScores]) const {
#pragma unroll
    for (int i = 0; i < kScores; ++i) d[i] = 0.0f;
    const std::uint32_t first =
        ptx::cvta_to_shared(keys) + common::swizzled_chunk(16 * warp_ + lane_ % 16, lane_ / 16);
    const std::uint32_t second = ptx::cvta_to_shared(rows) +
                                 common::swizzled_chunk(lane_ % 8 + lane_ / 16 * 8, lane_ / 8 % 2);
#pragma unroll
    for (int k = 0; k < Traits::kHeadDim / 16; ++k) {
      std::uint32_t a[4];
      ptx::ldmatrix_x4(a, (first ^ (k % 4 * 32)) + k / 4 * Traits::kKeys * 128);
#pragma unroll
      for (int n = 0; n < kRows / 16; ++n) {
        std::uint32_t b[4];
        ptx::ldmatrix_x4(b, (second ^ (k % 4 * 32)) + k / 4 * kRows * 128 + n * 16 * 128);
        multiply_columns<Item>(d, n, a, b);
      }
    }
  }

  __device__ __forceinline__ static void load_columns(std::uint32_t (&b)[4], std::uint32_t rows,
                                                      int k, int n) {
    ptx::ldmatrix_x4_trans(b, (rows ^ (n % 4 * 32)) + n / 4 * kRows * 128 + k * 16 * 128);
  }

  /// sums += a times the rows of a step.
  template <bool kMasked>
  __device__ __forceinline__ void add(const RowInfo& infos, const std::uint32_t (&a)[kRowSteps][4],
                                      const std::uint8_t* rows, float (&sums)[kSums]) const {
    const std::uint32_t from =
        ptx::cvta_to_shared(rows) + common::swizzled_chunk(lane_ % 16, lane_ / 16);
#pragma unroll
    for (int k = 0; k < kRowSteps; ++k) {
      if constexpr (kMasked) {
        add_seen(infos.limit + 16 * k, a[k], from, k, sums);
      } else {
#pragma unroll
        for (int n = 0; n < Traits::kHeadDim / 16; ++n) {
          std::uint32_t b[4];
          load_columns(b, from, k, n);
          multiply_columns<Item>(sums, n, a[k], b);
        }
      }
    }
  }

  /// The same for 16 rows that see different keys. 0 * NaN is NaN: rows that see equally many keys
  /// are multiplied alone, and what comes out is added for these keys only.
  __device__ __forceinline__ void add_seen(const int* limits, const std::uint32_t (&a)[4],
                                           std::uint32_t from, int k, float (&sums)[kSums]) const {
    common::warp::for_each_alike(limits[lane_ % 16], 0xffffu, [&](int limit, unsigned rows) {
      if (limit <= 16 * warp_) return;
      const std::uint32_t low = halves(rows >> common::fragment_column(lane_));
      const std::uint32_t high = halves(rows >> (common::fragment_column(lane_) + 8));
      const std::uint32_t own[4] = {a[0] & low, a[1] & low, a[2] & high, a[3] & high};
#pragma unroll
      for (int n = 0; n < Traits::kHeadDim / 16; ++n) {
        std::uint32_t b[4];
        load_columns(b, from, k, n);
        b[0] &= low;
        b[1] &= high;
        b[2] &= low;
        b[3] &= high;
        float d[8] = {};
        multiply_columns<Item>(d, 0, own, b);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (key_of(i / 2 % 2) < limit) sums[8 * n + i] += d[i];
        }
      }
    });
  }

  /// All bits of the halves of a word that the two lowest bits name.
  __device__ __forceinline__ static std::uint32_t halves(unsigned bits) {
    return ((bits & 1) != 0 ? 0xffffu : 0u) | ((bits & 2) != 0 ? 0xffff0000u : 0u);
  }

  /// Sums over the warp's keys, for each row: of lanes that share columns half of the numbers go
  /// one way and half the other, until each has its own.
  __device__ __forceinline__ void tell_rest(float (&rest)[kRows / 4]) const {
    constexpr int kLeft = kRows / 32;  // numbers of a lane in the end
#pragma unroll
    for (int step = 16, count = kRows / 8; step >= 4; step /= 2, count /= 2) {
      const bool upper = (lane_ & step) != 0;
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const float given = upper ? rest[i] : rest[i + count];
        const float kept = upper ? rest[i + count] : rest[i];
        rest[i] = kept + __shfl_xor_sync(common::kAllLanes, given, step);
      }
    }
    const int first = lane_ / 4 * kLeft;  // which numbers this lane has, of kRows / 4
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      const int number = first + i;
      shared_.rest[warp_][number / 2 * 8 + common::fragment_column(lane_) + number % 2] = rest[i];
    }
  }

  Shared& shared_;
  const int warp_;
  const int lane_;
  float weights_[kScores];
};

}  // namespace msa::cuda::mma::backward
