// SPDX-License-Identifier: MIT
// Producer warps. A Finder, one for each stage of the ring of steps, takes every kSteps-th step:
// who its tokens are, what is known of them, and their rows of index_q. The Gatherer has the query
// rows of all turns brought by the copy engine, 16 heads of a token a copy, as soon as their tokens
// are known. Tokens behind the item's last have rows of zeros, and no weights.
#pragma once

#include "cuda/common/backward/tiles.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/tile/swizzle.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/sm90/index_loss/traits.cuh"
#include "cuda/sm90/ptx/copy.cuh"

namespace msa::cuda::sm90::index_loss {

class Finder {
 public:
  using Shared = Traits::Shared;

  __device__ __forceinline__ Finder(const Params& params, Shared& shared, int stage)
      : params_(params),
        shared_(shared),
        lane_(static_cast<int>(threadIdx.x % 32)),
        at_{.stage = stage} {}

  /// This warp's steps of the item in shared memory. kStudent: the student's scores are all that is
  /// made of them.
  template <bool kStudent>
  __device__ __forceinline__ void run() {
    const int steps = Traits::steps_of(shared_.item);
    int step = (at_.stage + Traits::kSteps - first_stage_) % Traits::kSteps;
    first_stage_ = (first_stage_ + steps) % Traits::kSteps;
#pragma unroll 1
    for (; step < steps; step += Traits::kSteps) {
      const Token token = find(step * kTokens + lane_ % kTokens);
      float offsets[kOwnHeads];
      float student = 0.0f;
      float weight = 1.0f;
      if constexpr (!kStudent) {
        find_offsets(token, offsets);
        if (token.row >= 0) {
          student = params_.student_lse[std::int64_t{token.row} * params_.pairs.heads_kv +
                                        shared_.item.head];
          if (params_.weights != nullptr)
            weight = params_.weights[token.row * params_.stride_weights];
        }
      }
      shared_.steps.wait_empty(at_);
      load_index_q(token);
      tell(token, student, weight);
      if constexpr (!kStudent) tell_offsets(offsets);
      ptx::cp_async_wait_group<0>();
      ptx::fence_proxy_async_shared();
      shared_.steps.arrive(at_);
      at_.parity ^= 1;
    }
  }

 private:
  static constexpr int kOwnHeads = kGroup * kTokens / 32;  // of one token, a lane's

  struct Token {
    int row;    // of q; -1: behind the item's last
    int place;  // of the tile's block in its list
  };

  /// Token `number` of the item.
  __device__ __forceinline__ Token find(int number) const {
    const common::backward::Pairs& p = params_.pairs;
    const common::backward::WorkItem& item = shared_.item;
    if (number >= item.count) return {-1, 0};
    const std::int64_t at = std::int64_t{item.begin} + number;
    if (p.listed == 0) return {static_cast<int>(at), 0};
    return {common::backward::inverse_entry(p.q_indices, item.head, at),
            common::backward::inverse_entry(p.q_slots, item.head, at)};
  }

  /// Of kOwnHeads heads of a token, two lanes a token.
  __device__ __forceinline__ void find_offsets(const Token& token,
                                               float (&offsets)[kOwnHeads]) const {
    const int row = __shfl_sync(common::kAllLanes, token.row, lane_ / 2);
    const int head = shared_.item.head * kGroup + lane_ % 2 * kOwnHeads;
#pragma unroll
    for (int i = 0; i < kOwnHeads; ++i) offsets[i] = common::kMinusInf;
    if (row < 0) return;
#pragma unroll
    for (int i = 0; i < kOwnHeads; ++i) offsets[i] = common::item_of(params_.lse, row, head + i);
  }

  __device__ __forceinline__ void tell_offsets(const float (&offsets)[kOwnHeads]) const {
    float* to = shared_.offsets[at_.stage];
    bool blind = false;
#pragma unroll
    for (int i = 0; i < kOwnHeads; ++i) {
      const float lse = offsets[i];
      to[Traits::offset_of(lane_ / 2, lane_ % 2 * kOwnHeads + i)] =
          lse == common::kMinusInf ? lse : -lse * common::kLog2e;
      blind = blind || lse == common::kMinusInf;
    }
    blind = common::warp::any(blind);
    if (lane_ == 0) shared_.blind[at_.stage] = blind ? 1 : 0;
  }

  __device__ __forceinline__ void load_index_q(const Token& token) const {
    constexpr int kChunks = Traits::kIndexDim / 8;
    constexpr int kAtOnce = 32 / kChunks;  // tokens
    const auto* from = static_cast<const std::uint16_t*>(params_.index_q.data) +
                       shared_.item.head * params_.index_q.stride_h;
    const int chunk = lane_ % kChunks;
#pragma unroll
    for (int i = 0; i < kTokens; i += kAtOnce) {
      const int number = i + lane_ / kChunks;
      const int row = __shfl_sync(common::kAllLanes, token.row, number);
      ptx::cp_async_16(shared_.index_q[at_.stage] + (chunk >> 3) * kTokens * kPanelRowBytes +
                           common::swizzled_chunk(Traits::column_of(number), chunk & 7),
                       from + (row < 0 ? 0 : row * params_.index_q.stride_t) + chunk * 8,
                       row < 0 ? 0 : 16);
    }
    ptx::cp_async_commit_group();
  }

  /// What is known of the tokens, a lane each.
  __device__ __forceinline__ void tell(const Token& token, float student, float weight) const {
    const common::backward::Pairs& p = params_.pairs;
    int limit = 0;
    std::int64_t slot = -1;
    if (token.row >= 0) {
      slot = common::backward::slot_of(p, shared_.item, token.row, token.place);
      limit = min(
          visible_keys(shared_.request, token.row - shared_.request.q_begin, p.batch.causal != 0) -
              shared_.item.tile * Traits::kKeys,
          Traits::kKeys);
      // Who has nothing but scores of minus infinity gives nothing, and sees nothing here, either.
      if (student == common::kMinusInf) limit = 0;
    }
    const bool masked = common::warp::any(token.row >= 0 && limit < Traits::kKeys);
    // Something of index_q that is not finite is in the logarithm of the student's powers.
    const bool hostile =
        common::warp::any(token.row >= 0 && !(fabsf(student + weight) < -common::kMinusInf));
    if (lane_ == 0) shared_.sights[at_.stage] = sight_of(masked, !hostile);
    if (lane_ >= kTokens) return;
    Traits::TokenInfo& to = shared_.infos[at_.stage];
    const int column = Traits::column_of(lane_);
    to.slot[column] = slot;
    to.student[column] = student;
    to.weight[column] = weight;
    to.row[column] = token.row;
    to.limit[column] = limit;
  }

  const Params& params_;
  Shared& shared_;
  const int lane_;
  int first_stage_ = 0;  // of the item
  RingPosition<Traits::kSteps> at_;
};

class Gatherer {
 public:
  using Shared = Traits::Shared;

  __device__ __forceinline__ Gatherer(const Params& params, const Maps& maps, Shared& shared)
      : params_(params), maps_(maps), shared_(shared), lane_(static_cast<int>(threadIdx.x % 32)) {}

  /// The turns of the item in shared memory.
  __device__ __forceinline__ void run() {
    const int steps = Traits::steps_of(shared_.item);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      shared_.steps.wait_full(step_);
#pragma unroll 1
      for (int turn = 0; turn < Traits::kTurns; ++turn) gather(turn);
      shared_.steps.release(step_);
      step_.advance();
    }
  }

 private:
  /// A copy a lane: a token's heads, a panel of their columns.
  __device__ __forceinline__ void gather(int turn) {
    constexpr int kPanels = Traits::kHeadDim / kPanelItems;
    shared_.turns.wait_empty(turn_);
    if (lane_ == 0) shared_.turns.expect(turn_, Traits::kTurnBytes);
    __syncwarp();
    if (lane_ < Traits::kTurnTokens * kPanels) {
      const int token = lane_ / kPanels;
      const int panel = lane_ % kPanels;
      const int row =
          shared_.infos[step_.stage].row[Traits::column_of(turn * Traits::kTurnTokens + token)];
      const int outside = static_cast<int>(params_.pairs.batch.total_q);
      ptx::cp_async_bulk_tensor<4>(
          shared_.q[turn_.stage] + (panel * Traits::kTurnRows + token * kGroup) * kPanelRowBytes,
          &maps_.q, {panel * kPanelItems, 0, row < 0 ? outside : row, shared_.item.head},
          &shared_.turns.full[turn_.stage]);
    }
    turn_.advance();
  }

  const Params& params_;
  const Maps& maps_;
  Shared& shared_;
  const int lane_;
  RingPosition<Traits::kSteps> step_;
  RingPosition<Traits::kTurnStages> turn_;
};

}  // namespace msa::cuda::sm90::index_loss
