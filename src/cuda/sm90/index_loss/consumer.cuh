// SPDX-License-Identifier: MIT
// What a warpgroup does by wgmma: with 64 keys of the tile, scores of the student and the teacher,
// and the gradient of index keys; with 64 columns of all keys, the share of d_index_q, once both
// warpgroups have told their gradients, a step later. A wgmma accumulator has the order of
// mma.sync, so that a warp has the very 16 keys, in the same registers, that it has in
// mma/index_loss, whose everything else is.
#pragma once

#include "cuda/common/warp.cuh"
#include "cuda/mma/index_loss/consumer.cuh"
#include "cuda/sm90/index_loss/traits.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/tile/fragment.cuh"
#include "cuda/sm90/tile/product.cuh"

namespace msa::cuda::sm90::index_loss {

class Consumer : public mma::index_loss::Consumer<Traits> {
 public:
  using Base = mma::index_loss::Consumer<Traits>;
  using TurnPosition = RingPosition<Traits::kTurnStages>;

  using ToldPosition = RingPosition<2>;

  __device__ __forceinline__ Consumer(Shared& shared, ToldPosition& told)
      : Base(shared, shared.exchanges[told.stage]), told_(told) {}

  /// A step's gradients and sums are in its exchange.
  __device__ __forceinline__ void tell() {
    ptx::fence_proxy_async_shared();  // wgmma reads them
    ptx::mbarrier_arrive(&shared_.told[told_.stage]);
    told_.advance();
    exchange_ = &shared_.exchanges[told_.stage];
  }

  /// What both warpgroups have told of the step before.
  __device__ __forceinline__ const Traits::Exchange& before() const {
    return shared_.exchanges[told_.stage ^ 1];
  }

  /// Waits for it. There is nothing to wait for in the first step of all.
  __device__ __forceinline__ void await_before() const {
    wait(&shared_.told[told_.stage ^ 1], told_.stage == 0 ? told_.parity ^ 1 : told_.parity);
  }

  /// The warp's keys, which have arrived in shared memory, for all steps of an item.
  __device__ __forceinline__ void take_keys() {
    const std::uint32_t from = ptx::cvta_to_shared(shared_.k) +
                               common::swizzled_chunk(16 * warp_ + lane_ % 16, lane_ / 16);
#pragma unroll
    for (int k = 0; k < Traits::kHeadDim / 16; ++k) {
      mma::ptx::ldmatrix_x4(reinterpret_cast<std::uint32_t(&)[4]>(keys_[4 * k]),
                            (from ^ (k % 4 * 32)) + k / 4 * Traits::kKeys * kPanelRowBytes);
    }
    index_keys_finite_ = are_index_keys_finite();
  }

  /// Whether hidden index keys must not meet even gradients of 0 in the warp's share of d_index_q.
  __device__ __forceinline__ bool keeps_keys_apart(Sight sight) const {
    return sight == Sight::apart || (sight == Sight::masked && !index_keys_finite_);
  }

  /// The student's scores of a step.
  __device__ __forceinline__ void score(const TokenInfo& tokens, int stage, float scale_log2) {
    ptx::wgmma_fence();
    multiply_student(stage);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(scores_);
    mask(tokens, scale_log2);
  }

  /// The student's scores and the teacher's weights of a step. Beside the last turn's, the share of
  /// the step before: of the first step of an item it is nobody's. kBlind: some row has no weights.
  template <bool kBlind>
  __device__ __forceinline__ void compare(const Params& params, const TokenInfo& tokens, int stage,
                                          TurnPosition& turn) {
    float scores[kScores];
    const float* offsets = shared_.offsets[stage];
    await_turn_of(turn);
    ptx::wgmma_fence();
    multiply_student(stage);
    multiply_turn(turn, scores);
    pass_turn(turn);
    await_turn(turn, scores);
    ptx::keep_accumulator(scores_);
    weigh<kBlind, 0>(offsets, params.scale_log2, scores);

    await_turn_of(turn);
    ptx::wgmma_fence();
    multiply_turn(turn, scores);
    pass_turn(turn);
    await_turn(turn, scores);
    begin_share();
    weigh<kBlind, 1>(offsets, params.scale_log2, scores);
    mask(tokens, params.index_scale_log2);
    await_share();
  }

  /// The warp's columns of the share of the step before, for store_whole_share().
  __device__ __forceinline__ void make_share() {
    begin_share();
    await_share();
  }

  __device__ __forceinline__ void store_whole_share(const TokenInfo& tokens,
                                                    const common::backward::Shares& to) {
    transpose(share_);
    store_share(tokens, to, share_);
  }

  /// sums_ += e times the step's index_q.
  __device__ __forceinline__ void add_whole(int stage, const std::uint32_t (&e)[4]) {
    ptx::wgmma_fence();
    multiply_columns<Item, kTokens>(sums_, e, shared_.index_q[stage], true);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(sums_);
  }

 private:
  static constexpr int kTurnRows = Traits::kTurnRows;
  static constexpr int kScores = kTurnRows / 2;  // of a turn
  static constexpr int kTurnTokens = Traits::kTurnTokens;

  /// In the warp's columns of its share.
  __device__ __forceinline__ bool are_index_keys_finite() const {
    constexpr int kChunks = Traits::kPartDims / 8;  // of a key
    const int chunk = warp_ * kChunks + lane_ % kChunks;
    const std::uint8_t* panel = shared_.index_k + chunk / 8 * Traits::kKeys * kPanelRowBytes;
    float probe = 0.0f;  // NaN once anything is not finite
#pragma unroll
    for (int key = lane_ / kChunks; key < Traits::kKeys; key += 32 / kChunks) {
      const uint4 items =
          *reinterpret_cast<const uint4*>(panel + common::swizzled_chunk(key, chunk % 8));
      for (const std::uint32_t pair : {items.x, items.y, items.z, items.w}) {
        const float2 own = ptx::cvt_unpack<Item>(pair);
        probe = fmaf(own.x, 0.0f, fmaf(own.y, 0.0f, probe));
      }
    }
    return !common::warp::any(probe != 0.0f);
  }

  __device__ __forceinline__ void multiply_student(int stage) {
    constexpr int kWarpgroupKeys = 64;
    multiply_rows<Item, Traits::kIndexDim, Traits::kKeys * kPanelRowBytes,
                  kTokens * kPanelRowBytes>(
        scores_, shared_.index_k + warp_ / 4 * kWarpgroupKeys * kPanelRowBytes,
        shared_.index_q[stage]);
  }

  __device__ __forceinline__ void multiply_turn(const TurnPosition& turn,
                                                float (&scores)[kScores]) const {
    multiply_rows<Item, Traits::kHeadDim, kTurnRows * kPanelRowBytes>(scores, keys_,
                                                                      shared_.q[turn.stage]);
  }

  /// Warpgroups multiply by turns: one's exponentials run beside the other's products.
  __device__ __forceinline__ void await_turn_of(const TurnPosition& turn) const {
    shared_.turns.wait_full(turn);
    const int warpgroup = warp_ / 4;
    wait(&shared_.order[warpgroup], (turn.stage ^ warpgroup ^ 1) & 1);
  }
  __device__ __forceinline__ void pass_turn(const TurnPosition&) const {
    ptx::mbarrier_arrive(&shared_.order[warp_ / 4 ^ 1]);
  }

  __device__ __forceinline__ void begin_share() {
    await_before();
    ptx::wgmma_fence();
    multiply_transposed<Item, Traits::kKeys>(
        share_, shared_.index_k + warp_ / 4 * Traits::kKeys * kPanelRowBytes, before().e);
  }

  __device__ __forceinline__ void await_share() {
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(share_);
  }

  /// Waits for the scores of a turn, and what was multiplied in front of them.
  __device__ __forceinline__ void await_turn(TurnPosition& turn, float (&scores)[kScores]) {
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(scores);
    shared_.turns.release(turn);
    turn.advance();
  }

  /// The teacher's weights of a turn's tokens.
  template <bool kBlind, int kTurn>
  __device__ __forceinline__ void weigh(const float* offsets, float scale_log2,
                                        const float (&scores)[kScores]) {
    float sums[2][kTurnTokens] = {};  // of the upper key, and the lower
#pragma unroll
    for (int token = 0; token < kTurnTokens; ++token) {
      // Of this thread's columns, two of the token's first eight and two of the others.
      const float4 own = *reinterpret_cast<const float4*>(
          offsets + (kTurn * kTurnTokens + token) * kGroup + lane_ % 4 * 4);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float offset = i < 4 ? (i % 2 == 0 ? own.x : own.y) : (i % 2 == 0 ? own.z : own.w);
        const float weight = ptx::ex2(fmaf(scores[8 * token + i], scale_log2, offset));
        sums[i / 2 % 2][token] += kBlind && offset == common::kMinusInf ? 0.0f : weight;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kTurnTokens / 4; ++i)
        teacher_[kTurn * 4 + half * 2 + i] = sum_own(sums[half] + 4 * i);
    }
  }

  /// Lane t of a quad gets the quad's sum of token t of four.
  __device__ __forceinline__ float sum_own(const float* sums) const {
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

  std::uint32_t keys_[Traits::kHeadDim / 4];  // fragments
  float share_[Traits::kPartDims / 2];
  ToldPosition& told_;      // of the step
  bool index_keys_finite_;  // the warp's columns of them
};

}  // namespace msa::cuda::sm90::index_loss
