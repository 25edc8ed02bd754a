// SPDX-License-Identifier: MIT
// The producer warp: streams the CTA's steps.
#pragma once

#include "cuda/common/number.cuh"
#include "cuda/common/scales.cuh"
#include "cuda/sm90/decode/score/steps.cuh"
#include "cuda/sm90/ptx/copy.cuh"
#include "cuda/sm90/tile/key_box.cuh"

namespace msa::cuda::sm90::decode {

/// Warp 4: streams this CTA's steps.
template <class Traits>
class ScoreProducer {
 public:
  __device__ __forceinline__ ScoreProducer(const ScoreParams& params, ScoreShared<Traits>& shared,
                                           std::uint8_t* stages, int lane)
      : params_(params), shared_(shared), stages_(stages), lane_(lane) {}

  __device__ __forceinline__ void run() {
    const ScoreParams& p = params_;
    touch_pages(p.batch, likely_request(p), lane_);
    policy_ = ptx::createpolicy_evict_first();
    StepFinder finder(p, lane_);
    const std::int64_t total = finder.count();
    const int ctas = static_cast<int>(gridDim.x);
    const Deal deal(total, ctas);
    int request = -1;
    int step = 0;
    RequestRecord r{};
    const std::int64_t fixed_end = min(deal.fixed * (blockIdx.x + 1), total);
    std::int64_t n = min(deal.fixed * blockIdx.x, total);
    std::int64_t end = max(n, fixed_end - 1);
    bool claiming = false;
    unsigned claimed = 0;
    while (true) {
      Step found{};
      const bool finds = n != end;
      if (finds) {
        finder.find(n, request, step, r);
        found = find_step(r, request, step);
      }
      load_step(Traits::kAhead ? ahead_ : found);
      if constexpr (Traits::kAhead) ahead_ = found;
      if (finds) {
        ++n;
        continue;
      }
      // A claim is on its way while the steps before it are loaded, the first one behind the
      // prologue, which clears the counter.
      std::int64_t next = n;
      end = fixed_end;
      if (claiming) {
        next = deal.fixed * ctas +
               std::int64_t{__shfl_sync(common::kAllLanes, claimed, 0)} * deal.claim;
        if (next >= total) break;
        end = min(next + deal.claim, total);
      } else {
        ptx::griddepcontrol_wait();
      }
      claiming = true;
      if (lane_ == 0) claimed = atomicAdd(p.claims + blockIdx.y, 1u);
      n = next;
    }
    for (int team = 0; team < Traits::kTeams; ++team) {
      shared_.ring.wait_empty(at_);
      if (lane_ == 0) {
        shared_.notes[at_.stage] = {-1, 0, 0};
        shared_.ring.expect(at_, 0);
      }
      if (Traits::kFilter || (Traits::kCodes && p.k_scales.data != nullptr))
        shared_.ring.arrive(at_);
      at_.advance();
    }
    if (bad_request_ >= 0 && lane_ == 0)
      report(p.batch.status, bad_request_, -1, FaultKind::PageId);
  }

 private:
  /// A step whose page numbers may be on their way; request -1: none.
  struct Step {
    FoundBox box;  // of each lane
    std::int64_t k_begin = 0;
    int seqlen_k = 0;
    int request = -1;
    int step = 0;
  };

  __device__ __forceinline__ Step find_step(const RequestRecord& r, int request, int step) const {
    const ScoreParams& p = params_;
    const int boxes = kScoreStep >> box_shift(kScoreStep, p.batch.page_size);
    Step found{
        .box = {}, .k_begin = r.k_begin, .seqlen_k = r.seqlen_k, .request = request, .step = step};
    if (lane_ < boxes) found.box = find_key_box<kScoreStep>(p.batch, r, request, step, lane_);
    return found;
  }

  /// Fills one stage with a step.
  __device__ __forceinline__ void load_step(const Step& found) {
    if (found.request < 0) return;
    const ScoreParams& p = params_;
    const int box_rows = box_tokens(kScoreStep, p.batch.page_size);
    const int boxes = kScoreStep >> box_shift(kScoreStep, p.batch.page_size);
    const KeyBox box = checked_box(p.batch, found.box);
    const unsigned bad = warp::bad_boxes<1>(box, lane_);
    if (bad != 0 && bad_request_ < 0) bad_request_ = found.request;
    shared_.ring.wait_empty(at_);
    if (lane_ == 0) {
      // The arrival below publishes it.
      shared_.notes[at_.stage] = {found.request, found.step, bad};
      shared_.ring.expect(at_, Traits::kTileBytes);
    }
    __syncwarp();
    if (lane_ < boxes) {
      ptx::cp_async_bulk_tensor_hint(
          stages_ + at_.stage * Traits::kTileBytes + lane_ * box_rows * Traits::kRowBytes, &p.k_map,
          {0, box.token, static_cast<int>(blockIdx.y), box.page}, &shared_.ring.full[at_.stage],
          policy_);
    }
    if constexpr (Traits::kCodes) {
      if (p.k_scales.data != nullptr) load_scales(found, box);
    }
    if constexpr (Traits::kFilter) load_bounds(found, box);
    at_.advance();
  }

  /// The bounds of a step's keys, in the same way: three lanes to each 16 keys of a page, or to
  /// each group of ragged rows, of which the first may have begun before the step.
  __device__ __forceinline__ void load_bounds(const Step& found, const KeyBox& box) {
    const ScoreParams& p = params_;
    const int shift = box_shift(kScoreStep, p.batch.page_size);
    const int group = lane_ / 3;
    const int left = min(found.seqlen_k - found.step * kScoreStep, kScoreStep);  // keys
    const int page = __shfl_sync(common::kAllLanes, box.page, (group * kBoundRows) >> shift);
    std::int64_t at = page;
    bool there = group * kBoundRows < left && page != kNoPage;
    if (p.batch.page_size == 0) {
      const std::int64_t row = found.k_begin + std::int64_t{found.step} * kScoreStep;
      at = row / kBoundRows + group;
      there = at * kBoundRows < row + left;
    }
    const float* bound = p.bounds.data;
    if (there)
      bound += at * p.bounds.stride_group + blockIdx.y * p.bounds.stride_head +
               (lane_ % 3) * p.bounds.stride_item;
    ptx::cp_async_4(&shared_.bounds[at_.stage][lane_], bound, there ? 4 : 0);
    ptx::cp_async_mbarrier_arrive_noinc(&shared_.ring.full[at_.stage]);
  }

  /// The scales of a step's keys follow on a way of their own: every lane's arrival fills the
  /// stage.
  __device__ __forceinline__ void load_scales(const Step& found, const KeyBox& box) {
    const ScoreParams& p = params_;
    const int shift = box_shift(kScoreStep, p.batch.page_size);
    int first = __shfl_sync(common::kAllLanes, box.token, 0);
    int page = __shfl_sync(common::kAllLanes, box.page, 0);
#pragma unroll
    for (int key = lane_; key < kScoreStep; key += 32) {
      if ((1 << shift) != kScoreStep) {
        const int from = key >> shift;  // the lane of the key's box
        first = __shfl_sync(common::kAllLanes, box.token, from);
        page = __shfl_sync(common::kAllLanes, box.page, from);
      }
      const bool there = found.step * kScoreStep + key < found.seqlen_k && page != kNoPage;
      const float* scale = p.k_scales.data;
      if (there)
        scale = common::scale_at(p.k_scales, page, first + (key & ((1 << shift) - 1)),
                                 static_cast<int>(blockIdx.y));
      ptx::cp_async_4(&shared_.scales[at_.stage][key], scale, there ? 4 : 0);
    }
    ptx::cp_async_mbarrier_arrive_noinc(&shared_.ring.full[at_.stage]);
  }

  const ScoreParams& params_;
  ScoreShared<Traits>& shared_;
  std::uint8_t* stages_;
  const int lane_;
  std::uint64_t policy_ = 0;  // keys are streamed once
  RingPosition<Traits::kStages> at_{};
  Step ahead_{};  // found, not loaded
  int bad_request_ = -1;
};

}  // namespace msa::cuda::sm90::decode
