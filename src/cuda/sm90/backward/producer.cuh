// SPDX-License-Identifier: MIT
// A producer warp, one for each stage of the ring, which takes every kStages-th step: the query
// rows of the step, gathered by the copy engine, some heads of a token a copy, and what is known of
// them, two rows a lane. All that it looks up comes while consumers are at work on the step before.
// Behind the item's last token the first row of q comes again, with weights of 0, and dout is read
// outside the tensor, so that it arrives as zeros (see mma/backward/loader.cuh).
#pragma once

#include "cuda/common/backward/tiles.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/sm90/backward/traits.cuh"
#include "cuda/sm90/ptx/copy.cuh"

namespace msa::cuda::sm90::backward {

template <class Traits>
class Producer {
 public:
  using Shared = typename Traits::Shared;

  __device__ __forceinline__ Producer(const Params& params, const Maps& maps, Shared& shared)
      : params_(params),
        maps_(maps),
        shared_(shared),
        lane_(static_cast<int>(threadIdx.x % 32)),
        at_{.stage = static_cast<int>(threadIdx.x % 128) / 32} {}

  /// This warp's steps of the item in shared memory.
  __device__ __forceinline__ void run() {
    int step = (at_.stage - shared_.first_stage) & (Traits::kStages - 1);
#pragma unroll 1
    for (; step * kRows < shared_.item.count * params_.pairs.group; step += Traits::kStages) {
      QueryRow rows[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) rows[i] = find(step * kRows + lane_ + 32 * i);
      load(rows);
    }
  }

 private:
  static constexpr int kRows = Traits::kRows;
  static constexpr int kRowsShift = 6;
  static constexpr int kOwn = kRows / 32;  // rows of a lane
  static constexpr int kPanels = Traits::kPanels;
  static_assert(kRows == 1 << kRowsShift && (Traits::kStages & (Traits::kStages - 1)) == 0,
                "powers of two");

  struct QueryRow {
    int row;   // of q; -1: behind the item's last
    int head;  // of the group
    float lse;
    float delta;
    std::int64_t share;  // of dq; where shares are made
  };

  /// Row `number` of the item.
  __device__ __forceinline__ QueryRow find(int number) const {
    const common::backward::Pairs& p = params_.pairs;
    const common::backward::WorkItem& item = shared_.item;
    const int token = number / p.group;
    QueryRow found{-1, number - token * p.group, -common::kMinusInf, 0.0f, -1};
    if (token >= item.count) return found;
    const std::int64_t at = std::int64_t{item.begin} + token;
    found.row = p.listed == 0 ? static_cast<int>(at)
                              : common::backward::inverse_entry(p.q_indices, item.head, at);
    const int head = item.head * p.group + found.head;
    found.lse = common::item_of(params_.lse, found.row, head);
    found.delta = params_.delta[std::int64_t{found.row} * (p.heads_kv * p.group) + head];
    if constexpr (Traits::kShares) {
      const int place =
          p.listed == 0 ? 0 : common::backward::inverse_entry(p.q_slots, item.head, at);
      found.share = common::backward::slot_of(p, item, found.row, place) * p.group + found.head;
    }
    return found;
  }

  __device__ __forceinline__ void load(const QueryRow (&rows)[kOwn]) {
    shared_.ring.wait_empty(at_);
    tell(rows);
    __syncwarp();
    if (lane_ == 0) {
      shared_.ring.expect(at_, 2 * Traits::kRowBytes);
    } else {
      shared_.ring.arrive(at_);
    }
    __syncwarp();
    gather(rows);
    at_.parity ^= 1;
  }

  /// What is known of the rows.
  __device__ __forceinline__ void tell(const QueryRow (&rows)[kOwn]) {
    typename Traits::RowInfo& to = shared_.infos[at_.stage];
    bool blind = false;
    bool finite = true;
    int first_limit = Traits::kKeys;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int at = lane_ + 32 * i;
      int limit = 0;
      if (rows[i].row >= 0) {
        limit = min(visible_keys(shared_.request, rows[i].row - shared_.request.q_begin,
                                 params_.pairs.batch.causal != 0) -
                        shared_.item.tile * Traits::kKeys,
                    Traits::kKeys);
        // A row that attends to nothing sees nothing here, either.
        if (rows[i].lse == common::kMinusInf) {
          blind = true;
          limit = 0;
        }
        // Something of q that is not finite is in its lse, and of dout in delta.
        finite = finite && fabsf(rows[i].lse + rows[i].delta) < -common::kMinusInf;
      }
      to.lse[at] = rows[i].lse;
      to.delta[at] = rows[i].delta;
      to.limit[at] = limit;
      if constexpr (Traits::kShares) to.share[at] = rows[i].share;
      if (at == 0) first_limit = limit;
    }
    // The rows of a step ascend: if the first one sees all keys, all do, but for the blind.
    const bool masked = common::warp::any(blind || first_limit < Traits::kKeys);
    const bool hostile = common::warp::any(!finite);
    if (lane_ == 0) shared_.sights[at_.stage] = sight_of(masked, !hostile);
  }

  /// A copy a lane: some heads of a token, a panel of q or dout.
  __device__ __forceinline__ void gather(const QueryRow (&rows)[kOwn]) const {
    const int boxes = kRows >> maps_.box_shift;
    const int first = (lane_ & (boxes - 1)) << maps_.box_shift;
    const int which = lane_ >> (kRowsShift - maps_.box_shift);  // of the panels of q, then of dout
    int row[kOwn], head[kOwn];                                  // of the rows that `first` may be
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      row[i] = __shfl_sync(common::kAllLanes, rows[i].row, first % 32);
      head[i] = __shfl_sync(common::kAllLanes, rows[i].head, first % 32);
    }
    const int again = __shfl_sync(common::kAllLanes, rows[0].row, 0);
    if (which >= 2 * kPanels) return;
    int from = first < 32 ? row[0] : row[1];
    if (from < 0) from = which < kPanels ? again : static_cast<int>(params_.pairs.batch.total_q);
    const int panel = which % kPanels;
    std::uint8_t* to = (which < kPanels ? shared_.q[at_.stage] : shared_.dout[at_.stage]) +
                       (panel * kRows + first) * kPanelRowBytes;
    ptx::cp_async_bulk_tensor<4>(
        to, which < kPanels ? &maps_.q : &maps_.dout,
        {panel * kPanelItems, first < 32 ? head[0] : head[1], from, shared_.item.head},
        &shared_.ring.full[at_.stage]);
  }

  const Params& params_;
  const Maps& maps_;
  Shared& shared_;
  const int lane_;
  RingPosition<Traits::kStages> at_;
};

}  // namespace msa::cuda::sm90::backward
