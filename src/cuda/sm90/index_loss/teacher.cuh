// SPDX-License-Identifier: MIT
// A warpgroup that makes the teacher's weights of 64 keys of the tile, which it keeps as fragments:
// turn after turn of query rows, across steps, each multiplied while the one before is weighed.
#pragma once

#include "cuda/common/tile/swizzle.cuh"
#include "cuda/sm90/index_loss/traits.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/tile/fragment.cuh"
#include "cuda/sm90/tile/product.cuh"

namespace msa::cuda::sm90::index_loss {

class Teacher {
 public:
  using Shared = Traits::Shared;
  using Item = Traits::Item;

  __device__ __forceinline__ Teacher(const Params& params, Shared& shared)
      : shared_(shared),
        scale_log2_(params.scale_log2),
        lane_(static_cast<int>(threadIdx.x % 32)) {}

  /// All steps of the item, whose keys have arrived in shared memory.
  __device__ __forceinline__ void run() {
    take_keys();
    float first[kScores];
    float second[kScores];
    const int steps = Traits::steps_of(shared_.item);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      begin_turn(first);
      teach<true>(first, second);
    }
  }

 private:
  static constexpr int kScores = kTurnRows / 2;  // of a turn
  static constexpr int kTurnTokens = Traits::kTurnTokens;
  static constexpr int kColumns = kTurnRows / 8;  // pairs of neighbouring rows of a thread

  /// The warp's keys as fragments.
  __device__ __forceinline__ void take_keys() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const std::uint32_t from =
        ptx::cvta_to_shared(shared_.k) + common::swizzled_chunk(16 * warp + lane_ % 16, lane_ / 16);
#pragma unroll
    for (int k = 0; k < Traits::kHeadDim / 16; ++k) {
      mma::ptx::ldmatrix_x4(reinterpret_cast<std::uint32_t(&)[4]>(keys_[4 * k]),
                            (from ^ (k % 4 * 32)) + k / 4 * Traits::kKeys * kPanelRowBytes);
    }
  }

  /// A step, the first turn of which is under way. Its last turn is weighed while the first of the
  /// next step is multiplied, unless it is the item's last.
  template <bool kLast>
  __device__ __forceinline__ void teach(float (&first)[kScores], float (&second)[kScores]) {
    shared_.steps.wait_full(step_);
    const float* offsets = shared_.offsets[step_.stage];
    const bool blind = shared_.blind[step_.stage] != 0;
    float sums[Traits::kPairVectors * 4];
    begin_turn(second);
    weigh<1, 0>(offsets, blind, first, sums);
    begin_turn(first);
    weigh<1, 1>(offsets, blind, second, sums);
    begin_turn(second);
    weigh<1, 2>(offsets, blind, first, sums);
    if constexpr (!kLast) begin_turn(first);
    weigh<kLast ? 0 : 1, 3>(offsets, blind, second, sums);
    shared_.steps.release(step_);
    step_.advance();

    shared_.taught.wait_empty(mean_);
#pragma unroll
    for (int i = 0; i < Traits::kPairVectors; ++i)
      shared_.means[mean_.stage][i][threadIdx.x] =
          make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
    shared_.taught.arrive(mean_);
    mean_.advance();
  }

  __device__ __forceinline__ void begin_turn(float (&scores)[kScores]) {
    shared_.turns.wait_full(next_);
    ptx::wgmma_fence();
    multiply_rows<Item, Traits::kHeadDim, kTurnRows * kPanelRowBytes>(scores, keys_,
                                                                      shared_.q[next_.stage]);
    next_.advance();
  }

  /// The weights of a turn's tokens, while so many products behind it go on.
  template <int kPending, int kTurn, int kSums>
  __device__ __forceinline__ void weigh(const float* offsets, bool blind, float (&scores)[kScores],
                                        float (&sums)[kSums]) {
    float2 own[kColumns];
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
      own[n] = *reinterpret_cast<const float2*>(offsets + kTurn * kTurnRows + 8 * n +
                                                fragment_column(lane_));
    ptx::wgmma_wait_group<kPending>();
    ptx::keep_accumulator(scores);
    shared_.turns.release(turn_);
    turn_.advance();
    float of_tokens[2][kTurnTokens];  // of the upper key, and the lower
    if (blind) {
      add_weights<true>(own, scores, of_tokens);
    } else {
      add_weights<false>(own, scores, of_tokens);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
      sums[kTurn / 2 * 4 + half * 2 + kTurn % 2] = sum_own(of_tokens[half]);
  }

  /// kBlind: some row has no weights.
  template <bool kBlind>
  __device__ __forceinline__ void add_weights(const float2 (&offsets)[kColumns],
                                              const float (&scores)[kScores],
                                              float (&sums)[2][kTurnTokens]) const {
#pragma unroll
    for (int token = 0; token < kTurnTokens; ++token) sums[0][token] = sums[1][token] = 0.0f;
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        const float offset = x % 2 == 0 ? offsets[n].x : offsets[n].y;
        const float weight = ptx::ex2(fmaf(scores[4 * n + x], scale_log2_, offset));
        sums[x / 2][n * 8 / kGroup] += kBlind && offset == common::kMinusInf ? 0.0f : weight;
      }
    }
  }

  /// Lane t of a quad gets the quad's sum of the turn's token t.
  __device__ __forceinline__ float sum_own(const float (&sums)[kTurnTokens]) const {
    const bool upper = (lane_ & 2) != 0;
    float own[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float others = __shfl_xor_sync(common::kAllLanes, upper ? sums[i] : sums[2 + i], 2);
      own[i] = (upper ? sums[2 + i] : sums[i]) + others;
    }
    const bool odd = (lane_ & 1) != 0;
    const float others = __shfl_xor_sync(common::kAllLanes, odd ? own[0] : own[1], 1);
    return (odd ? own[1] : own[0]) + others;
  }

  Shared& shared_;
  const float scale_log2_;
  const int lane_;
  std::uint32_t keys_[Traits::kHeadDim / 4];  // fragments
  RingPosition<Traits::kSteps> step_;
  RingPosition<Traits::kTurnStages> turn_;  // to be weighed
  RingPosition<Traits::kTurnStages> next_;  // to be multiplied
  RingPosition<Traits::kMeanStages> mean_;
};

}  // namespace msa::cuda::sm90::index_loss
