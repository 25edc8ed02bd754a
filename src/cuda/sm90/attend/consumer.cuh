// SPDX-License-Identifier: MIT
// A consumer warpgroup: 64 rows of every tile of the CTA. Per block it issues Q K^T of this block
// and P V of the one before. In the machine code the row maximum of this block runs beside P V and
// the exponentials behind it: ptxas moves the wait up to the last branch. Tied down behind them it
// was 3 to 4 % slower over lists: the other warpgroup fills the gap already. The two warpgroups do
// not order each other (measured: no gain). Every product is issued, committed and awaited in one
// straight line; ptxas serialises them otherwise.
#pragma once

#include "cuda/common/attend/softmax.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/sm90/attend/epilogue.cuh"
#include "cuda/sm90/attend/own_rows.cuh"
#include "cuda/sm90/attend/traits.cuh"
#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/tile/product.cuh"

namespace msa::cuda::sm90::attend {

template <class Traits>
class Consumer {
 public:
  using Item = typename Traits::Item;

  __device__ __forceinline__ Consumer(const Params& params, typename Traits::Shared& shared,
                                      int warpgroup)
      : params_(params), shared_(shared), rows_(warpgroup, params.group) {}

  __device__ __forceinline__ void run() {
    while (tile()) {
    }
  }

 private:
  static constexpr int kScores = Traits::kBlock / 2;
  static constexpr int kOutputs = Traits::kHeadDim / 2;
  // Over long contexts lazy CTAs drift apart and read K and V once each (docs/kernels/attend.md).
  static constexpr bool kLazy = Traits::kUnion;

  /// False where there is no further tile.
  __device__ __forceinline__ bool tile() {
    wait(&shared_.described[q_at_.stage], q_at_.parity);
    const Job job = shared_.jobs[q_at_.stage];
    if (job.head == kNoHead) return false;
    const std::uint8_t* q = shared_.q[q_at_.stage] + rows_.warpgroup * 64 * kPanelRowBytes;
    visible_[0] = rows_.visible(job, 0);
    visible_[1] = rows_.visible(job, 1);
    softmax_ = Softmax{};
    if constexpr (Traits::kFolds) folded_ = shared_.folded[q_at_.stage];
    shared_.q_ring.wait_full(q_at_);
    if (job.blocks > 0) {
      const auto& list = shared_.lists[q_at_.stage];
      first_step(q, entry_of<Traits>(params_, job, list, 0));
      if constexpr (Traits::kCodes) pack_codes();
      int i = 1;
      for (; i < job.masked; ++i) {
        step<true>(q, entry_of<Traits>(params_, job, list, i), i > 1);
        if constexpr (Traits::kCodes) pack_codes();
      }
      const std::uint32_t mine = rows_.warpgroup_tokens(params_.group);
      for (bool skips = false; i < job.blocks; ++i) {
        ListEntry entry = entry_of<Traits>(params_, job, list, i);
        if constexpr (Traits::kUnion) {  // a block that none of this warpgroup's tokens listed
          skips = i + 1 < job.blocks && __shfl_sync(common::kAllLanes, entry.tokens & mine, 0) == 0;
          if (skips) {
            skip_keys();
            entry = entry_of<Traits>(params_, job, list, ++i);
          }
        }
        step<false>(q, entry, i > 1 + (skips ? 1 : 0));
        if (skips) skip_values();
        if constexpr (Traits::kCodes) pack_codes();
      }
      issue_pv(job.blocks > 1);
      ptx::wgmma_wait_group<0>();
      give_back(shared_.v_ring, v_at_);
    } else {
#pragma unroll
      for (int x = 0; x < kOutputs; ++x) o_[x] = 0.0f;
    }
    softmax_.finish();
    const bool suspect = shared_.suspects[q_at_.stage] != 0;
    Epilogue<Traits> epilogue{params_, job, rows_.warpgroup, rows_.thread, folded_};
    ptx::bar_sync(kBarrierConsumer0 + rows_.warpgroup,
                  128);  // no warp of this warpgroup reads q any more
    epilogue.store(o_, softmax_, shared_.q[q_at_.stage], suspect);
    shared_.q_ring.release(q_at_);
    q_at_.advance();
    return true;
  }

  /// Gives a block back unread. Its values go after the next step, which multiplies those of the
  /// block before; with two stages that allows one skipped block at a time.
  __device__ __forceinline__ void skip_keys() {
    shared_.k_ring.wait_full(k_at_);
    give_back(shared_.k_ring, k_at_);
  }
  __device__ __forceinline__ void skip_values() {
    shared_.v_ring.wait_full(v_at_);
    give_back(shared_.v_ring, v_at_);
  }

  /// Scores of the first block, which always get element masks; nothing runs beside it.
  __device__ __forceinline__ void first_step(const std::uint8_t* q, const ListEntry& entry) {
    issue_qk(q);
    ptx::wgmma_wait_group<0>();
    if constexpr (Traits::kCodes) scale_keys();
    give_back(shared_.k_ring, k_at_);
    float decay[2];
    softmax_masked(entry, decay);
    if constexpr (!Traits::kCodes) pack();
  }

  template <bool kMasked>
  __device__ __forceinline__ void step(const std::uint8_t* q, const ListEntry& entry,
                                       bool accumulate) {
    issue_qk(q);
    issue_pv(accumulate);
    ptx::wgmma_wait_group<1>();
    if constexpr (Traits::kCodes) scale_keys();
    give_back(shared_.k_ring, k_at_);
    float decay[2];
    if constexpr (kMasked) {
      softmax_masked(entry, decay);
    } else {
      const bool takes_part[2] = {rows_.listed(entry, 0), rows_.listed(entry, 1)};
      float raised[2];
      softmax_.raise(s_, takes_part, raised);
      if constexpr (Traits::kCodes) round_maxima(raised);
      softmax_.template weigh<kLazy>(s_, raised, takes_part, folded_.scores(params_.scale_log2),
                                     decay);
    }
    ptx::wgmma_wait_group<0>();
    give_back(shared_.v_ring, v_at_);
    // Most blocks move no maximum: 459 ms instead of 484 at 128K dense.
    if (common::warp::any(decay[0] != 1.0f || decay[1] != 1.0f)) {
#pragma unroll
      for (int x = 0; x < kOutputs; ++x) o_[x] *= decay[(x >> 1) & 1];
    }
    if constexpr (!Traits::kCodes) pack();
  }

  /// Softmax of a block in which some rows do not see every key.
  __device__ __forceinline__ void softmax_masked(const ListEntry& entry, float (&decay)[2]) {
    int limit[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      limit[r] = rows_.listed(entry, r) ? visible_[r] - entry.block * Traits::kBlock : 0;
    }
    mask_fragment(s_, rows_.thread, [&](int half, int column) { return column >= limit[half]; });
    const bool all[2] = {true, true};
    float raised[2];
    row_max(s_, raised);
    raised[0] = fmaxf(softmax_.max[0], raised[0]);
    raised[1] = fmaxf(softmax_.max[1], raised[1]);
    if constexpr (Traits::kCodes) round_maxima(raised);
    softmax_.template weigh<kLazy>(s_, raised, all, folded_.scores(params_.scale_log2), decay);
  }

  __device__ __forceinline__ void issue_qk(const std::uint8_t* q) {
    shared_.k_ring.wait_full(k_at_);
    ptx::wgmma_fence();
    multiply_rows<Item, Traits::kHeadDim, kTileRows * kPanelRowBytes,
                  Traits::kBlock * kPanelRowBytes, ByWhole>(s_, q, shared_.k[k_at_.stage]);
  }

  __device__ __forceinline__ void issue_pv(bool accumulate) {
    shared_.v_ring.wait_full(v_at_);
    ptx::wgmma_fence();
    multiply_columns<Item, Traits::kBlock, ByWhole>(o_, p_, shared_.v[v_at_.stage], accumulate);
  }

  /// Scores of codes times their keys' scales, where those are the columns'.
  __device__ __forceinline__ void scale_keys() {
    if (params_.column_scales != 0) scale_columns(shared_.k_scales[k_at_.stage]);
  }

  /// Maxima that moved, where scales of columns will multiply the weights.
  __device__ __forceinline__ void round_maxima(float (&raised)[2]) const {
    if (params_.column_scales == 0) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (raised[r] > softmax_.max[r])
        raised[r] = common::whole_power(raised[r], params_.scale_log2);
    }
  }

  /// Weights times their values' scales become the A fragments of the next product. Behind the
  /// values that were given back: the next ones in the ring are the weights' own.
  __device__ __forceinline__ void pack_codes() {
    if (params_.column_scales != 0) {
      shared_.v_ring.wait_full(v_at_);
      scale_columns(shared_.v_scales[v_at_.stage]);
    }
    pack();
  }

  __device__ __forceinline__ void scale_columns(const float (&scales)[Traits::kBlock]) {
#pragma unroll
    for (int x = 0; x < kScores; x += 4) {
      const float2 pair =
          *reinterpret_cast<const float2*>(scales + 2 * x + fragment_column(rows_.thread));
      s_[x] *= pair.x;
      s_[x + 1] *= pair.y;
      s_[x + 2] *= pair.x;
      s_[x + 3] *= pair.y;
    }
  }

  /// Weights become the A fragments of the next product.
  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int x = 0; x < kScores / 2; ++x) p_[x] = ptx::cvt_pack<Item>(s_[2 * x], s_[2 * x + 1]);
  }

  template <int kStages>
  __device__ __forceinline__ void give_back(Ring<kStages>& ring, RingPosition<kStages>& at) {
    if constexpr (Traits::kCodes) {
      ring.release(at);  // every lane has read scales
    } else {
      ring.warp_release(at, rows_.thread & 31);
    }
    at.advance();
  }

  const Params& params_;
  typename Traits::Shared& shared_;
  const OwnRows<Traits> rows_;
  int visible_[2];  // keys that those rows see
  RingPosition<Traits::kQueryStages> q_at_{};
  RingPosition<Traits::kKeyStages> k_at_{};
  RingPosition<Traits::kKeyStages> v_at_{};
  Softmax softmax_{};
  common::Folded<Traits::kFolds> folded_{};
  float s_[kScores];
  float o_[kOutputs];
  std::uint32_t p_[kScores / 2];
};

}  // namespace msa::cuda::sm90::attend
