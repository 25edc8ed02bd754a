// SPDX-License-Identifier: MIT
// What a warp does with its rows of the tile: 16 or 32 of them, in products of 16. With a group of
// 16 query heads a product's rows are one token's, so that a block which the token did not list
// costs it nothing. Keys and values that two products of a warp share are read from shared memory
// once.
#pragma once

#include "cuda/common/attend/softmax.cuh"
#include "cuda/common/scales.cuh"
#include "cuda/common/tile/fragment.cuh"
#include "cuda/common/tile/swizzle.cuh"
#include "cuda/mma/attend/traits.cuh"

namespace msa::cuda::mma::attend {

template <class Traits>
class Consumer {
 public:
  using Item = typename Traits::Item;
  static constexpr int kTiles = Traits::kTiles;
  static constexpr int kOutputs = Traits::kHeadDim / 2;

  __device__ __forceinline__ explicit Consumer(typename Traits::Shared& shared)
      : shared_(shared), first_(static_cast<int>(threadIdx.x) / 32 * Traits::kWarpRows) {
    const int lane = lane_of();
    q_ = ptx::cvta_to_shared(shared.q) + common::swizzled_chunk(first_ + lane % 16, lane / 16);
    k_ = common::swizzled_chunk(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    v_ = common::swizzled_chunk(lane % 16, lane / 16);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int x = 0; x < kOutputs; ++x) o_[t][x] = 0.0f;
    }
  }

  /// Which of the warp's products the entry is for, as bits.
  __device__ __forceinline__ unsigned active(std::uint32_t tokens) const {
    if constexpr (!Traits::kUnion) return kAll;
    unsigned bits = 0;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      bits |= (tokens & shared_.tokens[first_ / 16 + t]) != 0 ? 1u << t : 0u;
    return bits;
  }

  /// Weights of the keys in `stage`, the first of which is `first_key`, and what older outputs
  /// shrink by.
  template <unsigned kActive>
  __device__ __forceinline__ void weigh(const std::uint8_t* stage, std::uint32_t tokens, int step,
                                        int first_key, float scale_log2) {
    multiply_keys<kActive>(ptx::cvta_to_shared(stage) + k_);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if ((kActive >> t & 1) == 0) continue;
      if constexpr (Traits::kKeyScales) scale_columns(s_[t], shared_.k_scales[step % 2]);
      soften(t, tokens, first_key, scale_log2);
    }
  }

  /// Weights times the scales of their values.
  template <unsigned kActive>
  __device__ __forceinline__ void scale_weights(const float (&scales)[kStepKeys]) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if ((kActive >> t & 1) != 0) scale_columns(s_[t], scales);
    }
  }

  /// Adds the weighted values in `stage` to the outputs.
  template <unsigned kActive>
  __device__ __forceinline__ void add_values(const std::uint8_t* stage) {
    const std::uint32_t v = ptx::cvta_to_shared(stage) + v_;
#pragma unroll
    for (int k = 0; k < kStepKeys / 16; ++k) {
      std::uint32_t p[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          p[t][i] = ptx::cvt_pack<Item>(s_[t][8 * k + 2 * i], s_[t][8 * k + 2 * i + 1]);
      }
#pragma unroll
      for (int n = 0; n < Traits::kHeadDim / 16; ++n) {
        std::uint32_t b[4];
        ptx::ldmatrix_x4_trans(b, (v ^ (n % 4 * 32)) + n / 4 * kStepKeys * 128 + k * 16 * 128);
        multiply<kActive>(o_, p, n, b);
      }
    }
  }

  float o_[kTiles][kOutputs];
  common::attend::Softmax softmax_[kTiles]{};

 private:
  static constexpr unsigned kAll = (1u << kTiles) - 1;
  static constexpr int kScores = kStepKeys / 2;

  __device__ __forceinline__ static int lane_of() { return static_cast<int>(threadIdx.x) % 32; }

  __device__ __forceinline__ static void scale_columns(float (&s)[kScores],
                                                       const float (&scales)[kStepKeys]) {
#pragma unroll
    for (int x = 0; x < kScores; x += 4) {
      const float2 pair =
          *reinterpret_cast<const float2*>(scales + 2 * x + common::fragment_column(lane_of()));
      s[x] *= pair.x;
      s[x + 1] *= pair.y;
      s[x + 2] *= pair.x;
      s[x + 3] *= pair.y;
    }
  }

  /// 16 columns, from column 16 n on, of all active products.
  template <unsigned kActive, int kItems>
  __device__ __forceinline__ static void multiply(float (&d)[kTiles][kItems],
                                                  const std::uint32_t (&a)[kTiles][4], int n,
                                                  const std::uint32_t (&b)[4]) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if ((kActive >> t & 1) == 0) continue;
      ptx::mma_m16n8k16<Item>(reinterpret_cast<float(&)[4]>(d[t][8 * n]), a[t], b[0], b[1]);
      ptx::mma_m16n8k16<Item>(reinterpret_cast<float(&)[4]>(d[t][8 * n + 4]), a[t], b[2], b[3]);
    }
  }

  template <unsigned kActive>
  __device__ __forceinline__ void multiply_keys(std::uint32_t keys) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if ((kActive >> t & 1) == 0) continue;
#pragma unroll
      for (int x = 0; x < kScores; ++x) s_[t][x] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < Traits::kHeadDim / 16; ++k) {
      std::uint32_t a[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if ((kActive >> t & 1) != 0)
          ptx::ldmatrix_x4(a[t], (q_ ^ (k % 4 * 32)) + k / 4 * kTileRows * 128 + t * 16 * 128);
      }
#pragma unroll
      for (int n = 0; n < kStepKeys / 16; ++n) {
        std::uint32_t b[4];
        ptx::ldmatrix_x4(b, (keys ^ (k % 4 * 32)) + k / 4 * kStepKeys * 128 + n * 16 * 128);
        multiply<kActive>(s_, a, n, b);
      }
    }
  }

  /// Scores of product t become weights.
  __device__ __forceinline__ void soften(int t, std::uint32_t tokens, int first_key,
                                         float scale_log2) {
    const int top = first_ + 16 * t;
    const int row = top + lane_of() / 4;
    if (first_key + kStepKeys > shared_.visible[top]) {
      const int limit[2] = {shared_.visible[row] - first_key, shared_.visible[row + 8] - first_key};
      common::mask_fragment(s_[t], lane_of(),
                            [&](int half, int column) { return column >= limit[half]; });
    }
    bool takes_part[2] = {true, true};
    if constexpr (Traits::kUnion) {
      takes_part[0] = (tokens >> shared_.token[row] & 1) != 0;
      takes_part[1] = (tokens >> shared_.token[row + 8] & 1) != 0;
    }
    float raised[2], decay[2];
    softmax_[t].raise(s_[t], takes_part, raised);
    if constexpr (Traits::kKeyScales) {  // they will multiply the weights
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (raised[r] > softmax_[t].max[r]) raised[r] = common::whole_power(raised[r], scale_log2);
      }
    }
    softmax_[t].template weigh<true>(s_[t], raised, takes_part, scale_log2, decay);
    if (common::warp::any(decay[0] != 1.0f || decay[1] != 1.0f)) {
#pragma unroll
      for (int x = 0; x < kOutputs; ++x) o_[t][x] *= decay[x >> 1 & 1];
    }
  }

  const typename Traits::Shared& shared_;
  const int first_;  // row
  std::uint32_t q_;  // where this lane's rows of matrices lie: of queries, in shared memory
  std::uint32_t k_;  // of keys and values, in a stage
  std::uint32_t v_;
  float s_[kTiles][kScores];
};

}  // namespace msa::cuda::mma::attend
