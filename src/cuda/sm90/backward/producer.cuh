// SPDX-License-Identifier: MIT
// A producer warp, one for each stage of the ring, which takes every kStages-th step: the query
// rows of the step, gathered by the copy engine, some heads of a token a copy, and what is known of
// them. A lane knows two rows, and looks up those of its next step while this one's are on their
// way. Rows behind the item's last are read outside q, so they arrive as zeros.
#pragma once

#include "cuda/common/backward/tiles.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/sm90/backward/traits.cuh"
#include "cuda/sm90/ptx/copy.cuh"

namespace msa::cuda::sm90::backward {

class Producer {
 public:
  using Shared = Traits::Shared;

  __device__ __forceinline__ Producer(const Params& params, const Maps& maps, Shared& shared)
      : params_(params),
        maps_(maps),
        shared_(shared),
        lane_(static_cast<int>(threadIdx.x % 32)),
        at_{.stage = static_cast<int>(threadIdx.x % 128) / 32} {}

  /// This warp's steps of the item in shared memory.
  __device__ __forceinline__ void run() {
    const int group = params_.pairs.group;
    const int steps = (shared_.item.count * group + kRows - 1) / kRows;
    int step = (at_.stage - first_stage_) & (Traits::kStages - 1);
    first_stage_ += steps;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      token_[i] = (step * kRows + lane_ + 32 * i) / group;
      head_[i] = (step * kRows + lane_ + 32 * i) % group;
    }
    const int tokens_ahead = Traits::kStages * kRows / group;
    const int heads_ahead = Traits::kStages * kRows % group;
    Found next[kOwn];
    find(next);
#pragma unroll 1
    for (; step < steps; step += Traits::kStages) {
      Found own[kOwn];
      int heads[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        own[i] = next[i];
        heads[i] = head_[i];
        token_[i] += tokens_ahead;
        head_[i] += heads_ahead;
        if (head_[i] >= group) {
          head_[i] -= group;
          ++token_[i];
        }
      }
      find(next);
      load(own, heads);
    }
  }

 private:
  static constexpr int kRows = Traits::kRows;
  static constexpr int kRowsShift = 6;
  static constexpr int kOwn = kRows / 32;  // rows of a lane
  static constexpr int kPanels = Traits::kPanels;
  static_assert(kRows == 1 << kRowsShift && (Traits::kStages & (Traits::kStages - 1)) == 0,
                "powers of two");

  /// A (row of q, place of the tile's block in its list); row -1: behind the item's last.
  struct Found {
    int row;
    int place;
  };

  __device__ __forceinline__ void find(Found (&found)[kOwn]) const {
    const common::backward::Pairs& p = params_.pairs;
    const common::backward::WorkItem& item = shared_.item;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      found[i] = {-1, 0};
      if (token_[i] >= item.count) continue;
      const std::int64_t at = std::int64_t{item.begin} + token_[i];
      found[i].row = static_cast<int>(at);
      if (p.listed == 0) continue;
      found[i].row = common::backward::inverse_entry(p.q_indices, item.head, at);
      found[i].place = common::backward::inverse_entry(p.q_slots, item.head, at);
    }
  }

  __device__ __forceinline__ void load(const Found (&own)[kOwn], const int (&heads)[kOwn]) {
    float lse[kOwn];
    float delta[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      lse[i] = delta[i] = 0.0f;
      if (own[i].row < 0) continue;
      const common::backward::Pairs& p = params_.pairs;
      const std::int64_t row = own[i].row;
      const int head = shared_.item.head * p.group + heads[i];
      lse[i] = params_.lse.data[row * params_.lse.stride_t + head * params_.lse.stride_h];
      delta[i] = params_.delta[row * (p.heads_kv * p.group) + head];
    }
    shared_.ring.wait_empty(at_);
    tell(own, heads, lse, delta);
    __syncwarp();
    if (lane_ == 0) {
      shared_.ring.expect(at_, 2 * Traits::kRowBytes);
    } else {
      shared_.ring.arrive(at_);
    }
    __syncwarp();
    gather(own, heads);
    at_.parity ^= 1;
  }

  /// What is known of the rows.
  __device__ __forceinline__ void tell(const Found (&own)[kOwn], const int (&heads)[kOwn],
                                       const float (&lse)[kOwn], const float (&delta)[kOwn]) {
    const common::backward::Pairs& p = params_.pairs;
    Traits::RowInfo& to = shared_.infos[at_.stage];
    const int first_key = shared_.item.tile * Traits::kKeys;
    bool blind = false;
    int first_limit = Traits::kKeys;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int at = lane_ + 32 * i;
      int limit = 0;
      std::int64_t share = -1;
      if (own[i].row >= 0) {
        if (params_.shares.steps != nullptr)
          share = common::backward::slot_of(p, shared_.item, own[i].row, own[i].place) * p.group +
                  heads[i];
        limit = min(visible_keys(shared_.request, own[i].row - shared_.request.q_begin,
                                 p.batch.causal != 0) -
                        first_key,
                    Traits::kKeys);
        // A row that attends to nothing sees nothing here, either.
        if (lse[i] == common::kMinusInf) {
          blind = true;
          limit = 0;
        }
      }
      to.lse[at] = lse[i];
      to.delta[at] = delta[i];
      to.limit[at] = limit;
      to.share[at] = share;
      if (at == 0) first_limit = limit;
    }
    // The rows of a step ascend: if the first one sees all keys, all do, but for the blind.
    const bool masked = common::warp::any(blind || first_limit < Traits::kKeys);
    if (lane_ == 0) shared_.masked[at_.stage] = masked ? 1 : 0;
  }

  /// A copy a lane: some heads of a token, a panel of q or dout.
  __device__ __forceinline__ void gather(const Found (&own)[kOwn], const int (&heads)[kOwn]) const {
    const int boxes = kRows >> maps_.box_shift;
    const int first = (lane_ & (boxes - 1)) << maps_.box_shift;
    const int which = lane_ >> (kRowsShift - maps_.box_shift);  // of the panels of q, then of dout
    const int low = __shfl_sync(common::kAllLanes, own[0].row, first % 32);
    const int high = __shfl_sync(common::kAllLanes, own[1].row, first % 32);
    const int low_head = __shfl_sync(common::kAllLanes, heads[0], first % 32);
    const int high_head = __shfl_sync(common::kAllLanes, heads[1], first % 32);
    if (which >= 2 * kPanels) return;
    const int row = first < 32 ? low : high;
    const int head = first < 32 ? low_head : high_head;
    const int panel = which % kPanels;
    const bool is_q = which < kPanels;
    std::uint8_t* to = (is_q ? shared_.q[at_.stage] : shared_.dout[at_.stage]) +
                       (panel * kRows + first) * kPanelRowBytes;
    const int outside = static_cast<int>(params_.pairs.batch.total_q);
    ptx::cp_async_bulk_tensor<4>(
        to, is_q ? &maps_.q : &maps_.dout,
        {panel * kPanelItems, row < 0 ? 0 : head, row < 0 ? outside : row, shared_.item.head},
        &shared_.ring.full[at_.stage]);
  }

  const Params& params_;
  const Maps& maps_;
  Shared& shared_;
  const int lane_;
  int token_[kOwn];      // of the item
  int head_[kOwn];       // of the group
  int first_stage_ = 0;  // of the item, and of laps before
  RingPosition<Traits::kStages> at_;
};

}  // namespace msa::cuda::sm90::backward
