// SPDX-License-Identifier: MIT
// A producer warp: streams the steps of its share.
#pragma once

#include "cuda/common/decode/score/steps.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/ptx/cp_async.cuh"
#include "cuda/common/scales.cuh"
#include "cuda/common/tile/key_box.cuh"

namespace msa::cuda::common::decode {

/// A warp behind the consumers: streams the steps of its share, to all teams or to its own.
template <class Traits>
class ScoreProducer {
  using Engine = typename Traits::Engine;
  using Params = ScoreParamsOf<typename Engine::Keys>;

 public:
  __device__ __forceinline__ ScoreProducer(const Params& params, ScoreShared<Traits>& shared,
                                           std::uint8_t* stages, int producer, int lane)
      : params_(params),
        shared_(shared),
        stages_(stages),
        share_(producer),
        lane_(lane),
        shift_(box_shift(kScoreStep, params.batch.page_size)),
        boxes_shift_(kStepShift - shift_),
        boxes_(1 << boxes_shift_),
        scaled_(arrives_with_scales<Traits>(params)) {
    for (int before = 0; before < producer; ++before) at_.advance();
  }

  __device__ __forceinline__ void run() {
    const Params& p = params_;
    touch_pages(p.batch, share_.likely_request(p), lane_);
    policy_ = Engine::streamed();
    StepFinder finder(p, lane_);
    const std::int64_t total = finder.count();
    const Deal<Traits::kProducers, Traits::kCtasPerSm> deal(total, share_.count);
    const std::int64_t fixed_end = min(deal.fixed * (share_.index + 1), total);
    std::int64_t n = min(deal.fixed * share_.index, total);
    std::int64_t end = max(n, fixed_end - 1);
    bool claiming = false;
    unsigned claimed = 0;
    while (true) {
      for (; n != end; ++n) {
        if (left_ == 0) look_up(finder, n);
        load_step();
      }
      // A claim is on its way while the steps before it are loaded, the first one behind the
      // prologue, which clears the counter.
      std::int64_t next = n;
      end = fixed_end;
      if (claiming) {
        next = deal.fixed * share_.count +
               std::int64_t{__shfl_sync(common::kAllLanes, claimed, 0)} * deal.claim;
        if (next >= total) break;
        end = min(next + deal.claim, total);
        left_ = 0;
      } else {
        ptx::griddepcontrol_wait();
      }
      claiming = true;
      if (lane_ == 0) claimed = atomicAdd(p.claims + blockIdx.y, 1u);
      n = next;
    }
    for (int team = 0; team < Traits::kTeams / Traits::kProducers; ++team) {
      shared_.ring.wait_empty(at_);
      if (lane_ == 0) {
        shared_.notes[at_.stage] = {-1, 0, 0};
        Engine::announce(shared_.ring, at_, 0);
      }
      if constexpr (Engine::kFillings > 1) shared_.ring.arrive(at_);
      if (scaled_) shared_.ring.arrive(at_);
      advance();
    }
    if (bad_request_ >= 0 && lane_ == 0)
      report(p.batch.status, bad_request_, -1, FaultKind::PageId);
  }

 private:
  __device__ __forceinline__ void advance() { at_.template advance_by<Traits::kProducers>(); }

  static constexpr int kStepShift = 7;
  static_assert(1 << kStepShift == kScoreStep, "boxes of a step are a power of two");

  /// Looks up the boxes of step `n` and of those behind it in its request, one a lane: a page
  /// number takes longer than a step.
  __device__ __forceinline__ void look_up(StepFinder& finder, std::int64_t n) {
    const FoundStep found = finder.find(n);
    next_ = {.request = found.request, .step = found.step};
    k_begin_ = found.k_begin;
    seqlen_k_ = found.seqlen_k;
    left_ = static_cast<int>(min(found.left, std::int64_t{32 >> boxes_shift_}));
    first_lane_ = 0;
    KeyBox box;
    if (lane_ < left_ << boxes_shift_) {
      const RequestRecord r{.k_begin = k_begin_, .seqlen_k = seqlen_k_};
      box = locate_key_box<kScoreStep>(params_.batch, r, next_.request,
                                       next_.step + (lane_ >> boxes_shift_), lane_ & (boxes_ - 1));
    }
    token_ = box.token;
    page_ = box.page;
    if constexpr (Traits::kPacked) {
      const bool there = lane_ < left_ << boxes_shift_ && page_ != kNoPage;
      const auto* groups =
          common::scale_at(params_.k_groups, page_, token_, static_cast<int>(blockIdx.y));
      groups_ = there && !scaled_ ? reinterpret_cast<std::uintptr_t>(groups) : 0;
    }
    bad_ = warp::bad_boxes<1>(box, lane_);
    if (bad_ != 0 && bad_request_ < 0) bad_request_ = next_.request;
  }

  /// Fills one stage with the next step that was looked up.
  __device__ __forceinline__ void load_step() {
    // Every lane has a box, those below boxes_ different ones.
    const int from = first_lane_ + (lane_ & (boxes_ - 1));
    const int token = __shfl_sync(common::kAllLanes, token_, from);
    const int page = __shfl_sync(common::kAllLanes, page_, from);
    unsigned bad_tiles = 0;
    if (bad_ != 0) {
      const int tile = lane_ & 7;
      const bool bad = (bad_ >> (first_lane_ + ((tile * 16) >> shift_)) & 1) != 0;
      bad_tiles = __ballot_sync(common::kAllLanes, bad) & 0xff;
    }
    std::uintptr_t groups = 0;  // of this lane's box, where the copy engine brings them
    int scale_bytes = 0;
    if constexpr (Traits::kPacked) {
      groups = __shfl_sync(common::kAllLanes, groups_, from);
      const unsigned brought = __ballot_sync(common::kAllLanes, lane_ < boxes_ && groups != 0);
      scale_bytes = __popc(brought) * box_scale_bytes();
    }
    shared_.ring.wait_empty(at_);
    if (lane_ == 0) {
      // The arrival below publishes it.
      next_.bad_tiles = bad_tiles;
      shared_.notes[at_.stage] = next_;
      Engine::announce(shared_.ring, at_, Traits::kTileBytes + scale_bytes);
    }
    __syncwarp();
    Engine::template load_step<Traits>(stage(), params_.keys, &shared_.ring.full[at_.stage],
                                       {token, page, false}, params_.batch, shift_, lane_, policy_);
    if constexpr (Traits::kCodes) {
      if (scaled_) load_scales(shared_.scales[at_.stage], params_.k_scales, token, page);
    }
    if constexpr (Traits::kPacked) load_groups(token, page, groups);
    if constexpr (Traits::kFilter) load_bounds(page);
    advance();
    first_lane_ += boxes_;
    ++next_.step;
    --left_;
  }

  /// The scales of a step's keys follow on a way of their own, one after the other: every lane's
  /// arrival fills the stage. `token` and `page` of this lane's box.
  template <class Scale, class From>
  __device__ __forceinline__ void load_scales(Scale* to, const From& scales, int token, int page) {
    const int left = seqlen_k_ - next_.step * kScoreStep;  // keys
    auto box_scales = common::scale_at(scales, page, token, static_cast<int>(blockIdx.y));
#pragma unroll
    for (int key = lane_; key < kScoreStep; key += 32) {
      int box_page = page;
      if (boxes_ != 1) {
        const int from = key >> shift_;  // the lane of the key's box
        box_page = __shfl_sync(common::kAllLanes, page, from);
        box_scales = common::scale_at(scales, box_page, __shfl_sync(common::kAllLanes, token, from),
                                      static_cast<int>(blockIdx.y));
      }
      const bool there = key < left && box_page != kNoPage;
      auto scale = scales.data;
      if (there) scale = box_scales + (key & ((1 << shift_) - 1)) * scales.stride_token;
      ptx::cp_async<sizeof(Scale)>(&to[key], scale, there ? sizeof(Scale) : 0);
    }
    ptx::cp_async_mbarrier_arrive_noinc(&shared_.ring.full[at_.stage]);
  }

  /// Or the copy engine brings them with their boxes, this lane's from `groups`.
  __device__ __forceinline__ void load_groups(int token, int page, std::uintptr_t groups) {
    std::uint8_t* const to = stage() + Traits::kTileBytes;
    if (scaled_) {
      load_scales(reinterpret_cast<uint2*>(to), params_.k_groups, token, page);
    } else if constexpr (Engine::kBulkCopies) {
      if (lane_ < boxes_ && groups != 0)
        Engine::copy(to + lane_ * box_scale_bytes(), groups, box_scale_bytes(),
                     &shared_.ring.full[at_.stage], policy_);
    }
  }

  /// The bounds of a step's keys, in the same way: three lanes to each 16 keys of a page, or to
  /// each group of ragged rows, of which the first may have begun before the step.
  __device__ __forceinline__ void load_bounds(int page) {
    const Params& p = params_;
    const int group = lane_ / 3;
    const int left = min(seqlen_k_ - next_.step * kScoreStep, kScoreStep);  // keys
    if (boxes_ != 1) page = __shfl_sync(common::kAllLanes, page, (group * kBoundRows) >> shift_);
    std::int64_t at = page;
    bool there = group * kBoundRows < left && page != kNoPage;
    if (p.batch.page_size == 0) {
      const std::int64_t row = k_begin_ + std::int64_t{next_.step} * kScoreStep;
      at = row / kBoundRows + group;
      there = at * kBoundRows < row + left;
    }
    const float* bound = p.bounds.data;
    if (there)
      bound += at * p.bounds.stride_group + blockIdx.y * p.bounds.stride_head +
               (lane_ % 3) * p.bounds.stride_item;
    ptx::cp_async<4>(&shared_.bounds[at_.stage][lane_], bound, there ? 4 : 0);
    ptx::cp_async_mbarrier_arrive_noinc(&shared_.ring.full[at_.stage]);
  }

  __device__ __forceinline__ std::uint8_t* stage() const {
    return stages_ + at_.stage * Traits::kStageBytes;
  }

  /// Of the groups of a box's keys.
  __device__ __forceinline__ int box_scale_bytes() const { return kRowScales << shift_; }

  const Params& params_;
  ScoreShared<Traits>& shared_;
  std::uint8_t* stages_;
  const Share<Traits> share_;
  const int lane_;
  const int shift_;  // logarithm of the keys of a box
  const int boxes_shift_;
  const int boxes_;           // of a step
  const bool scaled_;         // every lane arrives, too
  std::uint64_t policy_ = 0;  // keys are streamed once
  RingPosition<Traits::kStages> at_{};
  // Steps that were looked up, the next one first: `left_` of them, whose boxes lie in lanes from
  // `first_lane_` on.
  StageNote next_{};
  std::int64_t k_begin_ = 0;
  int seqlen_k_ = 0;
  int left_ = 0;
  int first_lane_ = 0;
  int token_ = 0;  // of this lane's box
  int page_ = 0;
  std::uintptr_t groups_ = 0;  // the scales of its groups; 0: the copy engine does not bring them
  unsigned bad_ = 0;           // boxes without a page, as bits
  int bad_request_ = -1;
};

}  // namespace msa::cuda::common::decode
