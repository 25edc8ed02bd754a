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

  __device__ __forceinline__ explicit Consumer(typename Traits::Shared& shared) : shared_(shared) {
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
      bits |= (tokens & shared_.tokens[first() / 16 + t]) != 0 ? 1u << t : 0u;
    return bits;
  }

  /// Scores of the keys in `stage`, the first of which is `first_key`, and the maxima that weights
  /// are taken against; outputs shrink where one moved.
  template <unsigned kActive>
  __device__ __forceinline__ void score(const std::uint8_t* stage, std::uint32_t tokens, int step,
                                        int first_key, float scale_log2) {
    multiply_keys<kActive>(ptx::cvta_to_shared(stage) + keys_of_lane());
    if constexpr (Traits::kKeyScales) scale_columns<kActive>(shared_.k_scales[step % 2]);
    if (first_key + kStepKeys > shared_.visible[first()]) mask<kActive>(first_key);
    float raised[kTiles][2];
    raise<kActive>(raised);
    move<kActive>(raised, tokens, scale_log2);
  }

  /// Adds the values in `stage`, weighted. Weights of 16 keys at a time, so that exponentials run
  /// beside products.
  template <unsigned kActive>
  __device__ __forceinline__ void add_values(const std::uint8_t* stage, int step,
                                             float scale_log2) {
    const std::uint32_t v = ptx::cvta_to_shared(stage) + values_of_lane();
#pragma unroll
    for (int k = 0; k < kStepKeys / 16; ++k) {
      std::uint32_t p[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if ((kActive >> t & 1) != 0) weigh(t, k, step, scale_log2, p[t]);
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

  template <unsigned kActive>
  __device__ __forceinline__ void scale_columns(const float (&scales)[kStepKeys]) {
#pragma unroll
    for (int x = 0; x < kScores; x += 4) {
      const float2 pair =
          *reinterpret_cast<const float2*>(scales + 2 * x + common::fragment_column(lane_of()));
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if ((kActive >> t & 1) == 0) continue;
        s_[t][x] *= pair.x;
        s_[t][x + 1] *= pair.y;
        s_[t][x + 2] *= pair.x;
        s_[t][x + 3] *= pair.y;
      }
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
    const std::uint32_t queries = queries_of_lane();
#pragma unroll
    for (int k = 0; k < Traits::kHeadDim / 16; ++k) {
      std::uint32_t a[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if ((kActive >> t & 1) != 0)
          ptx::ldmatrix_x4(a[t], (queries ^ (k % 4 * 32)) + k / 4 * kTileRows * 128 + t * 16 * 128);
      }
#pragma unroll
      for (int n = 0; n < kStepKeys / 16; ++n) {
        std::uint32_t b[4];
        ptx::ldmatrix_x4(b, (keys ^ (k % 4 * 32)) + k / 4 * kStepKeys * 128 + n * 16 * 128);
        multiply<kActive>(s_, a, n, b);
      }
    }
  }

  /// Where this lane's rows of matrices lie, worked out anew for each step: registers are few.
  __device__ __forceinline__ std::uint32_t queries_of_lane() const {
    const int lane = ptx::laneid();
    return ptx::cvta_to_shared(shared_.q) + common::swizzled_chunk(first() + lane % 16, lane / 16);
  }
  __device__ __forceinline__ static std::uint32_t keys_of_lane() {
    const int lane = ptx::laneid();
    return common::swizzled_chunk(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }

  __device__ __forceinline__ static std::uint32_t values_of_lane() {
    const int lane = ptx::laneid();
    return common::swizzled_chunk(lane % 16, lane / 16);
  }

  /// First row of the warp.
  __device__ __forceinline__ static int first() {
    return __shfl_sync(common::kAllLanes, static_cast<int>(threadIdx.x), 0) / 32 *
           Traits::kWarpRows;
  }

  /// Row of the tile of this thread's first score of product t.
  __device__ __forceinline__ int row_of(int t) const { return first() + 16 * t + lane_of() / 4; }

  /// Scores of keys that a row does not see.
  template <unsigned kActive>
  __device__ __forceinline__ void mask(int first_key) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if ((kActive >> t & 1) == 0) continue;
      const int limit[2] = {shared_.visible[row_of(t)] - first_key,
                            shared_.visible[row_of(t) + 8] - first_key};
      common::mask_fragment(s_[t], lane_of(),
                            [&](int half, int column) { return column >= limit[half]; });
    }
  }

  /// Moves maxima to `raised` where that lies far enough above. All products beside each other,
  /// with a branch for all: alone each waits for its shuffles.
  template <unsigned kActive>
  __device__ __forceinline__ void move(float (&raised)[kTiles][2], std::uint32_t tokens,
                                       float scale_log2) {
    bool moved = false;
    float decay[kTiles][2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if ((kActive >> t & 1) == 0) continue;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const bool takes_part =
            !Traits::kUnion || (tokens >> shared_.token[row_of(t) + 8 * r] & 1) != 0;
        float& max = softmax_[t].max[r];
        float top = takes_part ? fmaxf(max, raised[t][r]) : max;
        // Scales of values will multiply the weights.
        if (Traits::kKeyScales && top > max) top = common::whole_power(top, scale_log2);
        // The first block always moves: infinity is above any slack.
        if (!((top - max) * scale_log2 > common::attend::kSlack)) top = max;
        const float base = top == common::kMinusInf ? 0.0f : top;  // nothing seen: 2^-inf, not NaN
        decay[t][r] = ptx::ex2((max - base) * scale_log2);
        // Weights 0, or NaN where scores are not finite: the tile is then computed again.
        offset_[t][r] = takes_part ? -base * scale_log2 : common::kMinusInf;
        softmax_[t].sum[r] *= decay[t][r];
        moved = moved || decay[t][r] != 1.0f;
        max = top;
      }
    }
    if (!common::warp::any(moved)) return;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if ((kActive >> t & 1) == 0) continue;
#pragma unroll
      for (int x = 0; x < kOutputs; ++x) o_[t][x] *= decay[t][x >> 1 & 1];
    }
  }

  /// Weights of 16 keys as the first factor of a product.
  __device__ __forceinline__ void weigh(int t, int k, int step, float scale_log2,
                                        std::uint32_t (&p)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = i % 2;
      float low = ptx::ex2(fmaf(s_[t][8 * k + 2 * i], scale_log2, offset_[t][r]));
      float high = ptx::ex2(fmaf(s_[t][8 * k + 2 * i + 1], scale_log2, offset_[t][r]));
      softmax_[t].sum[r] += low + high;
      if constexpr (Traits::kKeyScales) {
        const float* scales = shared_.v_scales[step % 2] + 16 * k + 8 * (i / 2);
        low *= scales[common::fragment_column(lane_of())];
        high *= scales[common::fragment_column(lane_of()) + 1];
      }
      p[i] = ptx::cvt_pack<Item>(low, high);
    }
  }

  /// Largest scores of this thread's rows, or more: their maximum so far.
  template <unsigned kActive>
  __device__ __forceinline__ void raise(float (&largest)[kTiles][2]) const {
    bool negative = false;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if ((kActive >> t & 1) == 0) continue;
      int bits[2];
      common::attend::row_max_bits(s_[t], softmax_[t].max, bits);
      largest[t][0] = __int_as_float(bits[0]);
      largest[t][1] = __int_as_float(bits[1]);
      negative = negative || min(bits[0], bits[1]) < 0;
    }
    if (!common::warp::any(negative)) return;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if ((kActive >> t & 1) != 0) common::attend::row_max(s_[t], largest[t]);
    }
  }

  const typename Traits::Shared& shared_;
  float s_[kTiles][kScores];
  float offset_[kTiles][2];  // of the exponents of weights
};

}  // namespace msa::cuda::mma::attend
