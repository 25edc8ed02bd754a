// SPDX-License-Identifier: MIT
// A consumer warpgroup: 64 rows, of some tokens that listed the tile's block, times all of its
// keys. As in sm90/backward_queries, but that what a step gives dq is a share of its own. The other
// warpgroup's products fill what this one leaves. Every product is issued, committed and awaited in
// one straight line; ptxas serialises them otherwise.
#pragma once

#include "cuda/common/backward/shares.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/sm90/backward_shares/traits.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/tile/fragment.cuh"
#include "cuda/sm90/tile/product.cuh"

namespace msa::cuda::sm90::backward_shares {

class Consumer {
 public:
  using Item = Traits::Item;
  using Shared = Traits::Shared;
  using Position = RingPosition<Traits::kStages>;

  __device__ __forceinline__ Consumer(const Params& params, Shared& shared)
      : params_(params), shared_(shared), thread_(static_cast<int>(threadIdx.x % 128)) {}

  /// Every second step of an item, from number `first` of `steps` on; `at`: the stage of number 0.
  /// Scores of a step are multiplied while the share of the one before is packed.
  __device__ __forceinline__ void run(Position at, int steps, int first) {
    if (first >= steps) return;
    at.advance_far(first);
    shared_.ring.wait_full(at);
    multiply_keys(shared_.q[at.stage], shared_.k, s_);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(s_);
    std::int64_t shares[2];
    std::uint32_t rest[4];
    make_gradients(at, shares, rest);
#pragma unroll 1
    for (int step = first + Traits::kConsumers; step < steps; step += Traits::kConsumers) {
      at.template advance_by<Traits::kConsumers>();
      shared_.ring.wait_full(at);
      multiply_gradients(rest);
      multiply_keys(shared_.q[at.stage], shared_.k, s_);
      ptx::wgmma_wait_group<1>();
      ptx::keep_accumulator(dq_);
      store(shares);
      ptx::wgmma_wait_group<0>();
      ptx::keep_accumulator(s_);
      make_gradients(at, shares, rest);
    }
    multiply_gradients(rest);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(dq_);
    store(shares);
  }

 private:
  static constexpr int kScores = Traits::kKeys / 2;
  static constexpr int kOutputs = Traits::kHeadDim / 2;
  static constexpr int kRows = Traits::kRows;

  /// Of scores, those of a step's rows; its stage is given back.
  __device__ __forceinline__ void make_gradients(Position at, std::int64_t (&shares)[2],
                                                 std::uint32_t (&rest)[4]) {
    const Rows rows = read_rows(at.stage);
    if (shared_.sights[at.stage] != Sight::whole) mask(rows);
    multiply_keys(shared_.dout[at.stage], shared_.v, dp_);
    weigh(rows);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(dp_);
    shared_.ring.release(at);
    derive(rows, rest);
    shares[0] = rows.share[0];
    shares[1] = rows.share[1];
  }

  /// What the step gives dq.
  __device__ __forceinline__ void multiply_gradients(const std::uint32_t (&rest)[4]) {
    ptx::wgmma_fence();
    multiply_columns<Item, Traits::kKeys>(dq_, ds_, shared_.k, false);
    multiply_columns<Item, Traits::kMeanRows>(dq_, rest, shared_.mean, true);
  }

  /// What is known of this thread's two rows.
  struct Rows {
    float lse[2];  // to base 2
    float delta[2];
    int limit[2];
    std::int64_t share[2];
  };

  __device__ __forceinline__ Rows read_rows(int stage) const {
    const Traits::RowInfo& infos = shared_.infos[stage];
    Rows rows;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = fragment_row(thread_) + 8 * r;
      const float lse = infos.lse[row];  // a blind row sees nothing, whatever its delta
      rows.lse[r] = lse == common::kMinusInf ? 0.0f : lse * common::kLog2e;
      rows.delta[r] = infos.delta[row];
      rows.limit[r] = infos.limit[row];
      rows.share[r] = infos.share[row];
    }
    return rows;
  }

  /// d = the step's rows times the tile; a group of its own.
  __device__ __forceinline__ static void multiply_keys(const std::uint8_t* rows,
                                                       const std::uint8_t* keys,
                                                       float (&d)[kScores]) {
    ptx::wgmma_fence();
    multiply_rows<Item, Traits::kHeadDim, kRows * kPanelRowBytes, Traits::kKeys * kPanelRowBytes>(
        d, rows, keys);
  }

  /// Hidden keys weigh nothing.
  __device__ __forceinline__ void mask(const Rows& rows) {
    mask_fragment(s_, thread_, [&](int half, int column) { return column >= rows.limit[half]; });
  }

  /// Scores become weights.
  __device__ __forceinline__ void weigh(const Rows& rows) {
#pragma unroll
    for (int x = 0; x < kScores; ++x)
      s_[x] = ptx::ex2(fmaf(s_[x], params_.scale_log2, -rows.lse[(x >> 1) & 1]));
  }

  /// Gradients of scores, rounded, as first factors; `rest`: what rounding took from the thread's
  /// keys of each row, in two items, as the first factor of the rows of Shared::mean. As its
  /// columns, too, are the threads', the product adds up what a quad has.
  __device__ __forceinline__ void derive(const Rows& rows, std::uint32_t (&rest)[4]) {
    float lost[2] = {0.0f, 0.0f};
#pragma unroll
    for (int x = 0; x < kScores; x += 2) {
      const int r = (x >> 1) & 1;
      const float exact[2] = {s_[x] * (dp_[x] - rows.delta[r]),
                              s_[x + 1] * (dp_[x + 1] - rows.delta[r])};
      ds_[x / 2] = ptx::cvt_pack<Item>(exact[0], exact[1]);
      const float2 rounded = ptx::cvt_unpack<Item>(ds_[x / 2]);
      lost[r] += (exact[0] - rounded.x) + (exact[1] - rounded.y);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float upper = ptx::cvt_unpack<Item>(ptx::cvt_pack<Item>(lost[r], 0.0f)).x;
      rest[r] = rest[r + 2] = ptx::cvt_pack<Item>(lost[r], lost[r] - upper);
    }
  }

  /// Both of the thread's rows.
  __device__ __forceinline__ void store(const std::int64_t (&shares)[2]) const {
    constexpr int kDims = Traits::kPartDims;
    constexpr int kParts = Traits::kHeadDim / kDims;
    float own[2 * kParts][kDims / 4];
#pragma unroll
    for (int part = 0; part < 2 * kParts; ++part) {
#pragma unroll
      for (int i = 0; i < kDims / 4; ++i)
        own[part][i] = dq_[part % kParts * (kDims / 2) + i / 2 * 4 + part / kParts * 2 + i % 2];
    }
    const common::backward::PackedShare<kDims, 2 * kParts, true> packed(own);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (shares[r] < 0) continue;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        packed.store(params_.shares, shares[r], Traits::kHeadDim, part, thread_ % 4,
                     r * kParts + part);
    }
  }

  const Params& params_;
  Shared& shared_;
  const int thread_;   // in the warpgroup
  float s_[kScores];   // scores, then weights
  float dp_[kScores];  // dout V
  float dq_[kOutputs];
  std::uint32_t ds_[kScores / 2];
};

}  // namespace msa::cuda::sm90::backward_shares
