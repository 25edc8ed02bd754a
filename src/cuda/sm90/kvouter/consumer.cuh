// SPDX-License-Identifier: MIT
// A consumer warpgroup: four tokens of every query tile, a warp each. One block is all that a tile
// sees, so the softmax needs no state: scores, weights, product, store. Partials leave in fragment
// order, 512 bytes a warp at a time.
#pragma once

#include "cuda/common/attend/softmax.cuh"
#include "cuda/common/steps.cuh"
#include "cuda/sm90/kvouter/lists.cuh"
#include "cuda/sm90/kvouter/traits.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/tile/fragment.cuh"
#include "cuda/sm90/tile/key_box.cuh"
#include "cuda/sm90/tile/product.cuh"

namespace msa::cuda::sm90::kvouter {

template <class Traits>
class Consumer {
 public:
  using Item = typename Traits::Item;

  __device__ __forceinline__ Consumer(const Params& params, typename Traits::Shared& shared,
                                      int warpgroup, int chunk)
      : params_(params),
        shared_(shared),
        entries_(chunk_entries(params, chunk)),
        thread_(static_cast<int>(threadIdx.x & 127)),
        token_(warpgroup * Traits::kWarpgroupTokens + (thread_ >> 5)),
        q_offset_(warpgroup * Traits::kWarpgroupTokens * Traits::kTokenBytes) {}

  __device__ __forceinline__ void run() {
    for (;;) {
      shared_.kv_ring.wait_full(kv_at_);
      const WorkItem item = shared_.items[kv_at_.stage];
      if (item.count == 0) return;
      const Visible visible = visible_of(item);
      if constexpr (Traits::kCodes) folded_ = shared_.folded[kv_at_.stage];
      const Entry* entries = entries_ + item.begin;
      Entry next = load_entry(entries, token_, item.count);
      for (int first = 0; first < item.count; first += Traits::kTileTokens) {
        const Entry entry = next;  // one tile ahead: its latency is as long as a product
        next = load_entry(entries, first + Traits::kTileTokens + token_, item.count);
        tile(entry, visible);
      }
      if (thread_ == 0) shared_.kv_ring.release(kv_at_);
      kv_at_.advance();
    }
  }

 private:
  static constexpr int kScores = kBlock / 2;
  static constexpr int kOutputs = kDim / 2;
  static constexpr std::uint32_t kUnused = 0xffffffffu;  // slot of a row behind the list

  /// Row r of q sees clamp(r + shift, 0, keys) - first keys of the block.
  struct Visible {
    std::int64_t shift;
    int keys;
    int first;
  };

  __device__ __forceinline__ Visible visible_of(const WorkItem& item) const {
    const RequestRecord& request = params_.requests[item.request];
    const bool causal = params_.batch.causal != 0;
    const std::int64_t everything = std::int64_t{1} << 40;
    return {
        .shift = causal ? request.offset - request.key_offset + 1 - request.q_begin : everything,
        .keys = visible_keys(request, INT32_MAX, false),
        .first = item.block * kBlock};
  }

  __device__ __forceinline__ static Entry load_entry(const Entry* entries, int at, int count) {
    if (at >= count) return {0, kUnused};
    const int2 raw = *reinterpret_cast<const int2*>(entries + at);
    return {raw.x, static_cast<std::uint32_t>(raw.y)};
  }

  __device__ __forceinline__ void tile(const Entry& entry, const Visible& visible) {
    const int limit =
        static_cast<int>(clamp64(entry.row + visible.shift, 0, visible.keys)) - visible.first;
    shared_.q_ring.wait_full(q_at_);
    multiply_keys();
    if (thread_ == 0) shared_.q_ring.release(q_at_);
    q_at_.advance();
    const unsigned bad = shared_.bad_boxes[kv_at_.stage];
    if (limit < kBlock || bad != 0) mask(limit, bad);
    float largest[2], sum[2];
    common::attend::row_max(s_, largest);
    weigh(largest, sum);
    multiply_values();
    if (entry.slot != kUnused) store(entry.slot, largest, sum);
  }

  __device__ __forceinline__ void multiply_keys() {
    ptx::wgmma_fence();
    multiply_rows<Item, kDim, Traits::kQueryPanelBytes, kBlock * kPanelRowBytes>(
        s_, shared_.q[q_at_.stage] + q_offset_, shared_.k[kv_at_.stage]);
    ptx::wgmma_wait_group<0>();
  }

  __device__ __forceinline__ void mask(int limit, unsigned bad) {
    const int shift = box_shift(kBlock, params_.batch.page_size);
    mask_fragment(s_, thread_,
                  [&](int, int key) { return key >= limit || ((bad >> (key >> shift)) & 1) != 0; });
  }

  /// Scores become weights, packed; `sum` of each row over the whole block.
  __device__ __forceinline__ void weigh(const float (&largest)[2], float (&sum)[2]) {
    const float scale_log2 = folded_.scores(params_.scale_log2);
    const float offset[2] = {largest[0] == -INFINITY ? 0.0f : -largest[0] * scale_log2,
                             largest[1] == -INFINITY ? 0.0f : -largest[1] * scale_log2};
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (int x = 0; x < kScores; x += 4) {
      const float a = ptx::ex2(fmaf(s_[x], scale_log2, offset[0]));
      const float b = ptx::ex2(fmaf(s_[x + 1], scale_log2, offset[0]));
      const float c = ptx::ex2(fmaf(s_[x + 2], scale_log2, offset[1]));
      const float d = ptx::ex2(fmaf(s_[x + 3], scale_log2, offset[1]));
      sum[0] += a + b;
      sum[1] += c + d;
      p_[x / 2] = ptx::cvt_pack<Item>(a, b);
      p_[x / 2 + 1] = ptx::cvt_pack<Item>(c, d);
    }
    sum[0] = quad::sum(sum[0]);
    sum[1] = quad::sum(sum[1]);
  }

  __device__ __forceinline__ void multiply_values() {
    ptx::wgmma_fence();
    multiply_columns<Item, kBlock>(o_, p_, shared_.v[kv_at_.stage], false);
    ptx::wgmma_wait_group<0>();
  }

  __device__ __forceinline__ void store(std::uint32_t slot, const float (&largest)[2],
                                        const float (&sum)[2]) const {
    const common::Steps steps[2] = {common::steps_of(peak(0)), common::steps_of(peak(1))};
    const int lane = thread_ & 31;
    uint4* at = params_.partials + static_cast<std::int64_t>(slot) * kPartialVectors + lane;
#pragma unroll
    for (int i = 0; i < kOutputs / 8; ++i) {
      const float* o = o_ + 8 * i;
      __stcs(at + i * 32, make_uint4(common::pack_steps(o[0], o[1], steps[0].per_one),
                                     common::pack_steps(o[2], o[3], steps[1].per_one),
                                     common::pack_steps(o[4], o[5], steps[0].per_one),
                                     common::pack_steps(o[6], o[7], steps[1].per_one)));
    }
    if ((lane & 3) != 0) return;
    PartialRow* rows = params_.partial_rows + static_cast<std::int64_t>(slot) * kGroup + lane / 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool empty = sum[r] == 0.0f;
      PartialRow row{
          .lse = empty ? -INFINITY
                       : fmaf(largest[r], folded_.scores(params_.scale_log2), ptx::lg2(sum[r])),
          .scale = empty ? 0.0f : __fdividef(steps[r].step, sum[r])};
      row.scale = folded_.values(row.scale);
      if constexpr (Traits::kCodes) {
        if (folded_.odd != 0) row.scale = NAN;
      }
      rows[8 * r] = row;
    }
  }

  /// A bound of the magnitudes in the thread's row r of the output, at most four times the largest:
  /// sums of four are compared, as additions cost half of what comparisons do.
  __device__ __forceinline__ float peak(int r) const {
    float largest = 0.0f;
#pragma unroll
    for (int x = 2 * r; x < kOutputs; x += 8) {
      const float four = fabsf(o_[x]) + fabsf(o_[x + 1]) + fabsf(o_[x + 4]) + fabsf(o_[x + 5]);
      largest = ptx::max_nan(largest, four);
    }
    return quad::max_nan(largest);
  }

  const Params& params_;
  typename Traits::Shared& shared_;
  const Entry* entries_;
  const int thread_;    // in the warpgroup
  const int token_;     // of the query tile
  const int q_offset_;  // bytes to the warpgroup's rows in a panel
  RingPosition<Traits::kKeyStages> kv_at_{};
  RingPosition<Traits::kQueryStages> q_at_{};
  common::Folded<Traits::kCodes> folded_{};
  float s_[kScores];
  float o_[kOutputs];
  std::uint32_t p_[kScores / 2];
};

}  // namespace msa::cuda::sm90::kvouter
