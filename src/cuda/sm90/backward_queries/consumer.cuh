// SPDX-License-Identifier: MIT
// A consumer warpgroup: 64 rows of every tile of the CTA. Per block it multiplies scores and dP,
// makes weights of the scores while dP is multiplied, and adds dS K to its rows of dq. The other
// warpgroup's products fill what this one leaves. Every product is issued, committed and awaited in
// one straight line; ptxas serialises them otherwise.
#pragma once

#include "cuda/common/rows.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/sm90/attend/epilogue.cuh"
#include "cuda/sm90/attend/own_rows.cuh"
#include "cuda/sm90/backward_queries/traits.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/tile/fragment.cuh"
#include "cuda/sm90/tile/product.cuh"

namespace msa::cuda::sm90::backward_queries {

using attend::entry_of;
using attend::ListEntry;

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

  /// False where there is no further tile.
  __device__ __forceinline__ bool tile() {
    wait(&shared_.described[q_at_.stage], q_at_.parity);
    const Job job = shared_.jobs[q_at_.stage];
    if (job.head == attend::kNoHead) return false;
    const attend::Epilogue<Traits> epilogue{params_, job, rows_.warpgroup, rows_.thread, {}};
    read_rows(job, epilogue);
#pragma unroll
    for (int x = 0; x < kOutputs; ++x) dq_[x] = 0.0f;
    shared_.q_ring.wait_full(q_at_);
    visit_blocks(job);
    __syncwarp();
    if ((rows_.thread & 31) == 0) ptx::mbarrier_arrive(&shared_.rows_read);
    store(epilogue);
    shared_.q_ring.release(q_at_);
    q_at_.advance();
    return true;
  }

  /// What is known of this thread's two rows. A row that attends to nothing, as its lse says, sees
  /// nothing, and its delta may be anything.
  __device__ __forceinline__ void read_rows(const Job& job,
                                            const attend::Epilogue<Traits>& epilogue) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::int64_t token = std::int64_t{job.row} + rows_.token[r];
      const int head =
          job.head * params_.group + (rows_.row + 8 * r - rows_.token[r] * params_.group);
      const float lse = epilogue.valid(rows_.row + 8 * r)
                            ? common::item_of(params_.lse, token, head)
                            : common::kMinusInf;
      const bool blind = lse == common::kMinusInf;
      visible_[r] = blind ? 0 : rows_.visible(job, r);
      lse_[r] = blind ? 0.0f : lse * common::kLog2e;
      delta_[r] = blind ? 0.0f : params_.delta[token * (params_.heads_kv * params_.group) + head];
    }
  }

  __device__ __forceinline__ void visit_blocks(const Job& job) {
    const auto& list = shared_.lists[q_at_.stage];
    const std::uint32_t mine = rows_.warpgroup_tokens(params_.group);
    const auto is_mine = [&](const ListEntry& entry) {
      return !Traits::kUnion || __shfl_sync(common::kAllLanes, entry.tokens & mine, 0) != 0;
    };
    int i = 0;
    ListEntry entry{};
    // The next block that some of this warpgroup's tokens listed; others are given back unread.
    const auto begin = [&] {
      for (; i < job.blocks; ++i) {
        entry = entry_of<Traits>(params_, job, list, i);
        if (is_mine(entry)) break;
        shared_.k_ring.wait_full(k_at_);
        give_back(shared_.k_ring, k_at_);
        shared_.v_ring.wait_full(v_at_);
        give_back(shared_.v_ring, v_at_);
      }
      if (i >= job.blocks) return false;
      shared_.k_ring.wait_full(k_at_);
      multiply_block(shared_.q[0], shared_.k[k_at_.stage], s_);
      ptx::wgmma_wait_group<0>();
      ptx::keep_accumulator(s_);
      return true;
    };
    if (!begin()) return;
    while (true) {
      float rest[2] = {0.0f, 0.0f};
      make_gradients(entry, i < job.masked, rest);
      ++i;
      if (i < job.blocks) entry = entry_of<Traits>(params_, job, list, i);
      if (i < job.blocks && is_mine(entry)) {
        RingPosition<Traits::kKeyStages> next = k_at_;
        next.advance();
        shared_.k_ring.wait_full(next);
        add_keys();
        multiply_block(shared_.q[0], shared_.k[next.stage], s_);
        ptx::wgmma_wait_group<1>();
        ptx::keep_accumulator(dq_);
        add_mean(rest);
        give_back(shared_.k_ring, k_at_);
        ptx::wgmma_wait_group<0>();
        ptx::keep_accumulator(s_);
      } else {
        add_keys();
        ptx::wgmma_wait_group<0>();
        ptx::keep_accumulator(dq_);
        add_mean(rest);
        give_back(shared_.k_ring, k_at_);
        if (!begin()) return;
      }
    }
  }

  /// Of scores.
  __device__ __forceinline__ void make_gradients(const ListEntry& entry, bool masked,
                                                 float (&rest)[2]) {
    if (masked) mask(entry);
    shared_.v_ring.wait_full(v_at_);
    multiply_block(shared_.dout[0], shared_.v[v_at_.stage], dp_);
    weigh(entry, masked);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(dp_);
    give_back(shared_.v_ring, v_at_);
    derive(rest);
    rest[0] = quad::sum(rest[0]);
    rest[1] = quad::sum(rest[1]);
  }

  /// d = the warpgroup's rows times a block; a group of its own.
  __device__ __forceinline__ void multiply_block(const std::uint8_t* rows, const std::uint8_t* keys,
                                                 float (&d)[kScores]) const {
    ptx::wgmma_fence();
    multiply_rows<Item, Traits::kHeadDim, kTileRows * kPanelRowBytes,
                  Traits::kBlock * kPanelRowBytes>(d, rows + rows_.warpgroup * 64 * kPanelRowBytes,
                                                   keys);
  }

  /// dq += dS times the block's keys; a group of its own.
  __device__ __forceinline__ void add_keys() {
    ptx::wgmma_fence();
    multiply_columns<Item, Traits::kBlock>(dq_, ds_, shared_.k[k_at_.stage], true);
  }

  __device__ __forceinline__ bool takes_part(const ListEntry& entry, int r) const {
    return visible_[r] > 0 && rows_.listed(entry, r);
  }

  /// Keys that a row does not see, or all of a block that it did not list, weigh nothing.
  __device__ __forceinline__ void mask(const ListEntry& entry) {
    int limit[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)
      limit[r] = takes_part(entry, r) ? visible_[r] - entry.block * Traits::kBlock : 0;
    mask_fragment(s_, rows_.thread, [&](int half, int column) { return column >= limit[half]; });
  }

  /// Scores become weights: 0 where the row did not list the block.
  __device__ __forceinline__ void weigh(const ListEntry& entry, bool masked) {
    float scale[2], offset[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool weighs = masked || takes_part(entry, r);
      scale[r] = weighs ? params_.scale_log2 : 0.0f;
      offset[r] = weighs ? -lse_[r] : common::kMinusInf;
    }
#pragma unroll
    for (int x = 0; x < kScores; ++x) {
      const int r = (x >> 1) & 1;
      s_[x] = ptx::ex2(fmaf(s_[x], scale[r], offset[r]));
    }
  }

  /// Gradients of scores, rounded, as first factors; `rest`: what rounding took from the thread's
  /// share of each row.
  __device__ __forceinline__ void derive(float (&rest)[2]) {
#pragma unroll
    for (int x = 0; x < kScores; x += 2) {
      const int r = (x >> 1) & 1;
      const float exact[2] = {s_[x] * (dp_[x] - delta_[r]), s_[x + 1] * (dp_[x + 1] - delta_[r])};
      ds_[x / 2] = ptx::cvt_pack<Item>(exact[0], exact[1]);
      const float2 rounded = ptx::cvt_unpack<Item>(ds_[x / 2]);
      rest[r] += (exact[0] - rounded.x) + (exact[1] - rounded.y);
    }
  }

  /// As if the block's keys were less what they have in common.
  __device__ __forceinline__ void add_mean(const float (&rest)[2]) {
    const float* mean = shared_.means[k_at_.stage] + fragment_column(rows_.thread);
#pragma unroll
    for (int x = 0; x < kOutputs; x += 4) {
      const float2 pair = *reinterpret_cast<const float2*>(mean + 2 * x);
      dq_[x] = fmaf(rest[0], pair.x, dq_[x]);
      dq_[x + 1] = fmaf(rest[0], pair.y, dq_[x + 1]);
      dq_[x + 2] = fmaf(rest[1], pair.x, dq_[x + 2]);
      dq_[x + 3] = fmaf(rest[1], pair.y, dq_[x + 3]);
    }
  }

  __device__ __forceinline__ void store(const attend::Epilogue<Traits>& epilogue) {
    float probe[2] = {0.0f, 0.0f};  // NaN once anything of the row is not finite
#pragma unroll
    for (int x = 0; x < kOutputs; ++x) {
      const int r = (x >> 1) & 1;
      probe[r] = fmaf(dq_[x], 0.0f, probe[r]);
      dq_[x] *= params_.scale;
    }
    bool again = shared_.suspects[q_at_.stage] != 0 && epilogue.valid(rows_.row & ~15);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // Where lse or delta is NaN the row is by its own keys.
      const bool own = isnan(lse_[r] + delta_[r]);
      again |= epilogue.valid(rows_.row + 8 * r) && !own && probe[r] != 0.0f;
    }
    epilogue.finish(dq_, shared_.dq, again);
  }

  template <int kStages>
  __device__ __forceinline__ void give_back(Ring<kStages>& ring, RingPosition<kStages>& at) {
    ring.release(at);  // every lane has read means
    at.advance();
  }

  const Params& params_;
  typename Traits::Shared& shared_;
  const attend::OwnRows<Traits> rows_;
  int visible_[2];  // keys that those rows see
  float lse_[2];    // to base 2
  float delta_[2];
  RingPosition<Traits::kQueryStages> q_at_{};
  RingPosition<Traits::kKeyStages> k_at_{};
  RingPosition<Traits::kKeyStages> v_at_{};
  float s_[kScores];   // scores, then weights
  float dp_[kScores];  // dout V
  float dq_[kOutputs];
  std::uint32_t ds_[kScores / 2];
};

}  // namespace msa::cuda::sm90::backward_queries
