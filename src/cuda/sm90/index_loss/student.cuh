// SPDX-License-Identifier: MIT
// The student by wgmma. In the first pass two warpgroups, of 64 keys each, make its scores and what
// they add up to. In the second one warpgroup has all keys: scores, what they and the teacher's
// weights give, the gradient of index keys, and the share of d_index_q. A wgmma accumulator has the
// order of mma.sync, so that a warp has the very 16 keys, in the same registers, that it has in
// mma/index_loss, whose everything else is; the one warpgroup's have 16 of either half.
#pragma once

#include "cuda/mma/index_loss/kernel.cuh"
#include "cuda/sm90/index_loss/traits.cuh"
#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/tile/fragment.cuh"
#include "cuda/sm90/tile/product.cuh"

namespace msa::cuda::sm90::index_loss {

/// 16 keys of a warp, of one half of the tile.
class StudentKeys : public mma::index_loss::Consumer<Traits> {
 public:
  using Base = mma::index_loss::Consumer<Traits>;

  using Base::Base;

  /// Begins the student's scores of a step, of the half's 64 keys.
  __device__ __forceinline__ void begin_scores(int stage) {
    constexpr int kHalfKeys = 64;
    multiply_rows<Item, Traits::kIndexDim, Traits::kKeys * kPanelRowBytes,
                  kTokens * kPanelRowBytes>(
        scores_, shared_.index_k + warp_ / 4 * kHalfKeys * kPanelRowBytes, shared_.index_q[stage]);
  }

  __device__ __forceinline__ void end_scores(const TokenInfo& tokens, float scale_log2) {
    ptx::keep_accumulator(scores_);
    mask(tokens, scale_log2);
  }

  /// The teacher's weights of the same pairs.
  __device__ __forceinline__ void take_means(int stage) {
#pragma unroll
    for (int i = 0; i < Traits::kPairVectors; ++i) {
      const float4 four = shared_.means[stage][i][warp_ * 32 + lane_];
      teacher_[4 * i] = four.x;
      teacher_[4 * i + 1] = four.y;
      teacher_[4 * i + 2] = four.z;
      teacher_[4 * i + 3] = four.w;
    }
  }

  /// sums_ += e times the step's index_q.
  __device__ __forceinline__ void add_whole(int stage, const std::uint32_t (&e)[4]) {
    ptx::wgmma_fence();
    multiply_columns<Item, kTokens>(sums_, e, shared_.index_q[stage], true);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(sums_);
  }

  /// Begins the half's 64 columns of the share of d_index_q.
  __device__ __forceinline__ void begin_share(const Exchange& from) {
    multiply_transposed<Item, Traits::kKeys>(
        share_, shared_.index_k + warp_ / 4 * Traits::kKeys * kPanelRowBytes, from.e);
  }

  __device__ __forceinline__ void end_share(const TokenInfo& tokens,
                                            const common::backward::Shares& to) {
    ptx::keep_accumulator(share_);
    transpose(share_);
    store_share(tokens, to, share_);
  }

  __device__ __forceinline__ void tell_in(Exchange& exchange) { exchange_ = &exchange; }

 private:
  float share_[Traits::kPartDims / 2];
};

/// A warpgroup's half of the first pass. What warps tell of a step is stored in the next, so that
/// the two need not be in step.
class ScoringStudent {
 public:
  using Shared = Traits::Shared;

  __device__ __forceinline__ ScoringStudent(const Params& params, Shared& shared)
      : params_(params), shared_(shared) {}

  __device__ __forceinline__ void run() {
    StudentKeys keys(shared_, shared_.exchanges[told_.stage]);
    const int steps = Traits::steps_of(shared_.item);
    RingPosition<Traits::kSteps> before = step_;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      shared_.steps.wait_full(step_);
      ptx::wgmma_fence();
      keys.begin_scores(step_.stage);
      ptx::wgmma_wait_group<0>();
      keys.end_scores(shared_.infos[step_.stage], params_.index_scale_log2);
      if (step > 0) finish(before);
      keys.sum_student();
      ptx::mbarrier_arrive(&shared_.told[told_.stage]);
      told_.advance();
      keys.tell_in(shared_.exchanges[told_.stage]);
      before = step_;
      step_.advance();
    }
    finish(before);
  }

 private:
  /// Stores what both warpgroups have told of the step before.
  __device__ __forceinline__ void finish(RingPosition<Traits::kSteps> before) {
    const int other = told_.stage ^ 1;
    wait(&shared_.told[other], told_.stage == 0 ? told_.parity ^ 1 : told_.parity);
    mma::index_loss::store_student<Traits>(params_, shared_.infos[before.stage],
                                           shared_.exchanges[other]);
    shared_.steps.release(before);
  }

  const Params& params_;
  Shared& shared_;
  RingPosition<Traits::kSteps> step_;
  RingPosition<2> told_;  // of the step
};

/// The one warpgroup of the second pass.
class Student {
 public:
  using Shared = Traits::Shared;

  __device__ __forceinline__ Student(const Params& params, Shared& shared)
      : params_(params),
        shared_(shared),
        thread_(static_cast<int>(threadIdx.x) - Traits::kThreads) {}

  __device__ __forceinline__ void run() {
    const int warp = __shfl_sync(common::kAllLanes, thread_, 0) / 32;
    StudentKeys lower(shared_, shared_.exchanges[0], warp);
    StudentKeys upper(shared_, shared_.exchanges[0], warp + 4);
    const int steps = Traits::steps_of(shared_.item);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) learn(lower, upper);
    mma::index_loss::store_sums<Traits>(params_, lower, shared_, warp);
    mma::index_loss::store_sums<Traits>(params_, upper, shared_, warp + 4);
  }

 private:
  __device__ __forceinline__ void learn(StudentKeys& lower, StudentKeys& upper) {
    shared_.steps.wait_full(step_);
    const int stage = step_.stage;
    const Traits::TokenInfo& tokens = shared_.infos[stage];
    Traits::Exchange& exchange = shared_.exchanges[mean_.stage];
    ptx::wgmma_fence();
    lower.begin_scores(stage);
    upper.begin_scores(stage);
    ptx::wgmma_wait_group<0>();
    lower.end_scores(tokens, params_.index_scale_log2);
    upper.end_scores(tokens, params_.index_scale_log2);

    shared_.taught.wait_full(mean_);
    const bool masked = shared_.masked[stage] != 0;
    if (masked) {
      derive<true>(lower, tokens, exchange, stage);
      derive<true>(upper, tokens, exchange, stage);
    } else {
      derive<false>(lower, tokens, exchange, stage);
      derive<false>(upper, tokens, exchange, stage);
    }
    shared_.taught.release(mean_);
    mean_.advance();
    ptx::fence_proxy_async_shared();  // wgmma reads them
    // Whoever comes here is done with the exchange of the step before, too.
    Traits::sync_student();
    mma::index_loss::store_loss<Traits>(params_, tokens, exchange, thread_);
    if (params_.shares.steps != nullptr) {
      if (masked) {
        lower.share_queries<true>(tokens, exchange, params_.shares);
        upper.share_queries<true>(tokens, exchange, params_.shares);
      } else {
        ptx::wgmma_fence();
        lower.begin_share(exchange);
        upper.begin_share(exchange);
        ptx::wgmma_wait_group<0>();
        lower.end_share(tokens, params_.shares);
        upper.end_share(tokens, params_.shares);
      }
    }
    shared_.steps.release(step_);
    step_.advance();
  }

  /// What student and teacher give: losses, and gradients of scores and of index keys.
  template <bool kMasked>
  __device__ __forceinline__ void derive(StudentKeys& keys, const Traits::TokenInfo& tokens,
                                         Traits::Exchange& exchange, int stage) {
    constexpr float kPerHead = 1.0f / kGroup;
    keys.tell_in(exchange);
    keys.take_means(mean_.stage);
    keys.derive(tokens, kPerHead);
    keys.add_keys(tokens, params_.sums.data != nullptr, params_.shares.steps != nullptr,
                  params_.weights != nullptr, [&](const std::uint32_t(&e)[4]) {
                    if constexpr (kMasked) {
                      keys.add_product<true>(tokens, stage, e);
                    } else {
                      keys.add_whole(stage, e);
                    }
                  });
  }

  const Params& params_;
  Shared& shared_;
  const int thread_;  // of the warpgroup
  RingPosition<Traits::kSteps> step_;
  RingPosition<Traits::kMeanStages> mean_;
  static_assert(Traits::kMeanStages == 2, "exchanges take turns with them");
};

}  // namespace msa::cuda::sm90::index_loss
