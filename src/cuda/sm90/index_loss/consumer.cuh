// SPDX-License-Identifier: MIT
// What a warpgroup does by wgmma: with 64 keys of the tile and its team's tokens, scores of the
// student and the teacher; a step later, once all have told their gradients, the gradient of index
// keys in its team's columns and, in every second step, 64 columns of the share of d_index_q. A
// wgmma accumulator has the order of mma.sync, so that a warp has the very 16 keys, in the same
// registers, that it has in mma/index_loss, whose everything else is.
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

  /// told: steps that this thread has told of.
  __device__ __forceinline__ Consumer(Shared& shared, unsigned& told, int warp)
      : Base(shared, shared.exchanges[told % 2], warp % Traits::kWarps, warp / Traits::kWarps),
        told_(told) {}

  /// A step's gradients and sums are in its exchange.
  __device__ __forceinline__ void tell() {
    ptx::fence_proxy_async_shared();  // wgmma reads them
    ptx::mbarrier_arrive(&shared_.told[told_ % 2]);
    ++told_;
    exchange_ = &shared_.exchanges[told_ % 2];
  }

  /// What all have told of the step before.
  __device__ __forceinline__ const Traits::Exchange& before() const {
    return shared_.exchanges[(told_ - 1) % 2];
  }

  /// Waits for it. There is nothing to wait for in the first step of all.
  __device__ __forceinline__ void await_before() const {
    wait(&shared_.told[(told_ - 1) % 2], (told_ - 1) / 2 % 2);
  }

  /// What is asked once for all steps of an item, whose keys have arrived in shared memory.
  __device__ __forceinline__ void take_keys() { index_keys_finite_ = are_index_keys_finite(); }

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

  /// The student's scores and the teacher's weights of a step. One turn is multiplied and weighed
  /// before the next: three more warps of the scheduler have work beside it. kBlind: some row has
  /// no weights.
  template <bool kBlind>
  __device__ __forceinline__ void compare(const Params& params, const TokenInfo& tokens, int stage,
                                          TurnPosition& turn) {
    float scores[kScores];
    const float* offsets = shared_.offsets[stage] + team_ * (Traits::kOwnTokens * kGroup);
    turns().wait_full(turn);
    ptx::wgmma_fence();
    multiply_student(stage);
    multiply_turn(turn, scores);
    await_turn(turn, scores);
    ptx::keep_accumulator(scores_);
    weigh<kBlind, 0>(offsets, params.scale_log2, scores);

    turns().wait_full(turn);
    ptx::wgmma_fence();
    multiply_turn(turn, scores);
    await_turn(turn, scores);
    weigh<kBlind, 1>(offsets, params.scale_log2, scores);
    mask(tokens, params.index_scale_log2);
  }

  /// Gradients of scores, rounded once, for all warps: as they are, where d_index_q is wanted or no
  /// tokens have weights, and times those.
  __device__ __forceinline__ void tell_gradients(const TokenInfo& tokens, bool weighted) {
    Gradients e;
    round_gradients(e);
    store(e, exchange_->e);
    if (!weighted) return;
    Gradients rest;
    weigh_gradients(tokens, e, rest);
    Traits::Exchange& to = shared_.exchanges[told_ % 2];
    store(e, to.weighted[0]);
    store(rest, to.weighted[1]);
  }

  /// sums_ += e of the step before, of 16 tokens, times their index_q.
  __device__ __forceinline__ void add_whole(int stage, const std::uint8_t* e) {
    constexpr int kRowBytes = kTokens * 2;
    ptx::wgmma_fence();
    add_product_16<Item>(sums_, e + warp_ / 4 * kWarpgroupKeys * kRowBytes,
                         shared_.index_q[stage] + team_ * (kTokens * kPanelRowBytes));
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(sums_);
  }

  /// The same where hidden keys are kept apart.
  __device__ __forceinline__ void add_apart(const TokenInfo& tokens, int stage,
                                            const std::uint8_t* e) {
    std::uint32_t own[4];
    mma::ptx::ldmatrix_x4(
        own, ptx::cvta_to_shared(e) + Traits::e_offset(16 * warp_ + lane_ % 16, lane_ / 16 * 8));
    add_product<true>(tokens, stage, own);
  }

  /// Whether the team makes the share of the step before: teams take turns.
  __device__ __forceinline__ bool makes_share() const {
    return static_cast<unsigned>(team_) == told_ % 2;
  }

  /// The warp's columns of it.
  __device__ __forceinline__ void make_whole_share(const TokenInfo& tokens,
                                                   const common::backward::Shares& to) {
    float share[Traits::kPartDims / 2];
    ptx::wgmma_fence();
    multiply_transposed<Item, Traits::kKeys>(
        share, shared_.index_k + warp_ / 4 * Traits::kKeys * kPanelRowBytes, before().e);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(share);
    float rows[Traits::kPartDims / 2];
#pragma unroll
    for (int i = 0; i < Traits::kPartDims / 2; ++i)
      asm volatile("mov.b32 %0, %1;" : "=f"(rows[i]) : "f"(share[i]));
    transpose(rows);
    store_share(tokens, to, rows);
  }

 private:
  static constexpr int kWarpgroupKeys = 64;
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

  __device__ __forceinline__ Ring<Traits::kTurnStages>& turns() const {
    return shared_.turns[team_];
  }

  __device__ __forceinline__ void multiply_student(int stage) {
    multiply_rows<Item, Traits::kIndexDim, Traits::kKeys * kPanelRowBytes,
                  kTokens * kPanelRowBytes>(
        scores_, shared_.index_k + warp_ / 4 * kWarpgroupKeys * kPanelRowBytes,
        shared_.index_q[stage] + team_ * (Traits::kOwnTokens * kPanelRowBytes));
  }

  __device__ __forceinline__ void multiply_turn(const TurnPosition& turn,
                                                float (&scores)[kScores]) const {
    multiply_rows<Item, Traits::kHeadDim, Traits::kKeys * kPanelRowBytes,
                  kTurnRows * kPanelRowBytes>(
        scores, shared_.k + warp_ / 4 * kWarpgroupKeys * kPanelRowBytes,
        shared_.q[team_][turn.stage]);
  }

  /// Waits for the scores of a turn, and what was multiplied in front of them.
  __device__ __forceinline__ void await_turn(TurnPosition& turn, float (&scores)[kScores]) {
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(scores);
    turns().release(turn);
    turn.advance();
  }

  /// The teacher's weights of a turn's tokens.
  template <bool kBlind, int kTurn>
  __device__ __forceinline__ void weigh(const float* offsets, float scale_log2,
                                        const float (&scores)[kScores]) {
    float sums[2][kTurnTokens] = {};  // of the upper key, and the lower
#pragma unroll
    for (int n = 0; n < kTurnRows / 8; ++n) {
      const float2 own = *reinterpret_cast<const float2*>(offsets + kTurn * kTurnRows + 8 * n +
                                                          fragment_column(lane_));
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        const float offset = x % 2 == 0 ? own.x : own.y;
        const float weight = ptx::ex2(fmaf(scores[4 * n + x], scale_log2, offset));
        sums[x / 2][n * 8 / kGroup] += kBlind && offset == common::kMinusInf ? 0.0f : weight;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) teacher_[half * 2 + kTurn] = sum_own(sums[half]);
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

  unsigned& told_;
  bool index_keys_finite_;  // the warp's columns of them
};

}  // namespace msa::cuda::sm90::index_loss
