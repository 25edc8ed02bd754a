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
#include "cuda/mma/tile/seen.cuh"

namespace msa::cuda::mma::backward {

template <class Traits>
class Consumer {
 public:
  using Item = typename Traits::Item;
  using Shared = typename Traits::Shared;
  using RowInfo = typename Traits::RowInfo;
  static constexpr int kRows = Traits::kRows;
  static constexpr int kWeighedRows = Traits::kWeighedRows;
  static constexpr int kSums = Traits::kHeadDim / 2;
  // Gradients of the scores of all rows, beside their weights, would not fit into registers.
  static constexpr int kDerivedRows = kWeighedRows < 32 ? kWeighedRows : 32;
  static_assert(kRows % kWeighedRows == 0 && (kWeighedRows == kRows || !Traits::kQueries),
                "what rounding took from all rows is told at once");

  __device__ __forceinline__ explicit Consumer(Shared& shared) : shared_(shared) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) dk_[i] = dv_[i] = 0.0f;
  }

  /// Weights of the step's rows `begin` and on; adds to dv where that is wanted.
  template <bool kMasked>
  __device__ __forceinline__ void weigh(const RowInfo& rows, int stage, int begin, float scale_log2,
                                        bool values) {
    locate();
    multiply_tile(shared_.k, shared_.q[stage], begin, weights_);
#pragma unroll
    for (int n = 0; n < kWeighedRows / 8; ++n) {
      const int row = begin + 8 * n + common::fragment_column(lane_);
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
#pragma unroll
    for (int first = 0; first < kWeighedRows; first += 16) {
      std::uint32_t p[1][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = weights_ + first / 2 + 2 * i;
        p[0][i] = ptx::cvt_pack<Item>(pair[0], pair[1]);
      }
      add<kMasked>(rows, begin + first, p, shared_.dout[stage], dv_);
    }
  }

  /// Gradients of their scores, into shared memory, too, where dq is wanted; adds to dk where that
  /// is.
  template <bool kMasked>
  __device__ __forceinline__ void derive(const RowInfo& rows, int stage, int begin, bool keys,
                                         bool queries) {
    locate();
    float rest[kRows / 4];
#pragma unroll
    for (int first = 0; first < kWeighedRows; first += kDerivedRows) {
      std::uint32_t ds[kDerivedRows / 16][4];
      derive_rows<kMasked>(rows, stage, begin, first, queries, ds, rest);
      if (keys) add<kMasked>(rows, begin + first, ds, shared_.q[stage], dk_);
    }
    if constexpr (Traits::kQueries) {
      if (queries) tell_rest(rest);
    }
  }

  /// Anew in each step: what is made of them in front of the loop would wait in registers.
  __device__ __forceinline__ void locate() {
    lane_ = ptx::laneid();
    warp_ = common::warp::number();
  }

  /// Sums over the warp's keys, for each row. Three times, half of what a lane has
  /// goes to another one, and what comes back is added to the other half.
  __device__ __forceinline__ void tell_rest(float (&rest)[kRows / 4]) const {
    halve<16, kRows / 8>(rest);
    halve<8, kRows / 16>(rest);
    halve<4, kRows / 32>(rest);
#pragma unroll
    for (int i = 0; i < kRows / 32; ++i) {
      const int number = lane_ / 4 * (kRows / 32) + i;  // which of the kRows / 4 this was
      shared_.rest[warp_][number / 2 * 8 + common::fragment_column(lane_) + number % 2] = rest[i];
    }
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

  /// Of kDerivedRows rows, from the `first` whose weights there are, those of `begin` and on.
  template <bool kMasked>
  __device__ __forceinline__ void derive_rows(const RowInfo& rows, int stage, int begin, int first,
                                              bool queries,
                                              std::uint32_t (&ds)[kDerivedRows / 16][4],
                                              float (&rest)[kRows / 4]) const {
    float dp[kDerivedRows / 2];
    multiply_tile(shared_.v, shared_.dout[stage], begin + first, dp);
#pragma unroll
    for (int n = 0; n < kDerivedRows / 8; ++n) {
      const int weighed = first / 8 + n;
      const int columns = begin / 8 + weighed;
      const int row = 8 * columns + common::fragment_column(lane_);
      const float delta[2] = {rows.delta[row], rows.delta[row + 1]};
      rest[2 * columns] = rest[2 * columns + 1] = 0.0f;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float exact[2];
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          exact[x] = weights_[4 * weighed + 2 * half + x] * (dp[4 * n + 2 * half + x] - delta[x]);
          if (kMasked && key_of(half) >= rows.limit[row + x]) exact[x] = 0.0f;
        }
        const std::uint32_t pair = ptx::cvt_pack<Item>(exact[0], exact[1]);
        const float2 rounded = ptx::cvt_unpack<Item>(pair);
        rest[2 * columns] += exact[0] - rounded.x;
        rest[2 * columns + 1] += exact[1] - rounded.y;
        ds[n / 2][n % 2 * 2 + half] = pair;
        if constexpr (Traits::kQueries) {
          if (!queries) continue;
          *reinterpret_cast<std::uint32_t*>(shared_.ds + ds_chunk(key_of(half), columns) +
                                            common::fragment_column(lane_) * 2) = pair;
        }
      }
    }
  }

  /// d = the warp's 16 rows of `keys` times rows first and on of `rows`, transposed.
  template <int kItems>
  __device__ __forceinline__ void multiply_tile(const std::uint8_t* keys, const std::uint8_t* rows,
                                                int first, float (&d)[kItems]) const {
    multiply_tiles<Item, Traits::kHeadDim>(keys, Traits::kKeys, 16 * warp_, rows, kRows, first,
                                           lane_, d);
  }

  /// sums += a times rows first and on of a step.
  template <bool kMasked, int kSteps>
  __device__ __forceinline__ void add(const RowInfo& infos, int first,
                                      const std::uint32_t (&a)[kSteps][4], const std::uint8_t* rows,
                                      float (&sums)[kSums]) const {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int k = first / 16 + step;
      const auto load = [&](std::uint32_t(&b)[4], int n) {
        load_columns(b, rows, kRows, k, n, lane_);
      };
      if constexpr (kMasked) {
        add_seen<Item>(infos.limit + 16 * k, 16 * warp_, lane_, a[step], load, sums);
      } else {
#pragma unroll
        for (int n = 0; n < Traits::kHeadDim / 16; ++n) {
          std::uint32_t b[4];
          load(b, n);
          multiply_columns<Item>(sums, n, a[step], b);
        }
      }
    }
  }

  template <int kStep, int kLeft>
  __device__ __forceinline__ void halve(float (&rest)[kRows / 4]) const {
    const bool upper = (lane_ & kStep) != 0;
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      const float given = upper ? rest[i] : rest[i + kLeft];
      const float kept = upper ? rest[i + kLeft] : rest[i];
      rest[i] = kept + __shfl_xor_sync(common::kAllLanes, given, kStep);
    }
  }

  Shared& shared_;
  int warp_ = 0;
  int lane_ = 0;
  float weights_[kWeighedRows / 2];
};

}  // namespace msa::cuda::mma::backward
