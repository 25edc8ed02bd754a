// SPDX-License-Identifier: MIT
// A consumer warp: 32 keys of every step (mma.sync, keys on M, tokens x heads on N). Maxima stay in
// shared memory until a span of steps is written. A dot product does not care in which order the
// contraction runs, so both operands take it in the order in which 16-byte loads deliver it.
#pragma once

#include "cuda/common/rows.cuh"
#include "cuda/sm90/decode/order.cuh"
#include "cuda/sm90/decode/score/codes.cuh"
#include "cuda/sm90/decode/score/filter.cuh"
#include "cuda/sm90/decode/score/keys.cuh"
#include "cuda/sm90/decode/score/steps.cuh"
#include "cuda/sm90/tile/key_box.cuh"

namespace msa::cuda::sm90::decode {

/// Writes the block scores of `held` steps, whose maxima lie in shared memory.
template <class Traits>
__device__ __forceinline__ void store_span(const ScoreParams& p, const RequestRecord& r,
                                           const ScoreShared<Traits>& shared, int head_k, int held,
                                           int thread) {
  const int shift = __ffs(p.batch.block_size) - 1;
  const int per_step = kScoreStep >> shift;              // blocks
  const int warps = p.batch.block_size / Traits::kKeys;  // that share a block
  const int num_blocks = (r.seqlen_k + p.batch.block_size - 1) >> shift;
  const int group = p.heads / p.heads_k;
  const int columns = r.seqlen_q * group;
  constexpr int kPitch = Traits::kSides * Traits::kColumns;
  const float* maxima = &shared.maxima[0][0][0];  // warp after warp, keys of a step ascending
  for (int i = thread; i < held * per_step * columns; i += Traits::kConsumers * 32) {
    const int at = i / columns;
    const int column = i - at * columns;
    const int block = shared.steps[at / per_step] * per_step + at % per_step;
    if (block >= num_blocks) continue;
    const std::int64_t row = r.q_begin + column / group;
    const int head = head_k * group + column % group;
    const float* parts = maxima + at * warps * kPitch + column;
    float best = -INFINITY;
    for (int warp = 0; warp < warps; ++warp) best = fmaxf(best, parts[warp * kPitch]);
    if (p.orders) {
      const RowBlocks blocks = row_blocks(p.batch, r, column / group);
      std::uint32_t order = blocks.order(best, block);
      if constexpr (Traits::kFilter) {
        common::row_of<std::uint32_t>(p.lower, row, head)[block] = order;
        auto* upper = common::row_of<std::uint32_t>(p.upper, row, head) + block * warps;
        for (int warp = 0; warp < warps; ++warp)
          upper[warp] = blocks.order(parts[warp * kPitch + Traits::kColumns], block);
        if (order != kForced) order = kNoBlock;  // until its keys are scored
      }
      best = __uint_as_float(order);
    }
    common::slots_of(p.scores, row, head)[block * p.scores.stride_slot] = best;
  }
}

/// Warps 0 to 3: scores what the ring brings.
template <class Traits>
class ScoreConsumer {
 public:
  __device__ __forceinline__ ScoreConsumer(const ScoreParams& params, ScoreShared<Traits>& shared,
                                           const std::uint8_t* stages, int warp, int lane_)
      : params_(params), shared_(shared), stages_(stages), warp_(warp), lane_(lane_) {}

  __device__ __forceinline__ void run() {
    constexpr int kConsumerThreads = Traits::kConsumers * 32;
    const ScoreParams& p = params_;
    ScoreShared<Traits>& shared = shared_;
    const int head_k = static_cast<int>(blockIdx.y);
    const int shift = box_shift(kScoreStep, p.batch.page_size);  // keys of a box
    int wanted = likely_request(p);  // its queries arrive while the first step is loaded
    int request = -1;
    RequestRecord r{};
    Columns<Traits> q;
    int held = 0;
    RingPosition<Traits::kStages> at;
    while (true) {
      if (request != wanted) {
        request = wanted;
        r = early_request(p.batch, p.records, request);
        load_columns<Traits>(q, p, r, head_k, lane_);
      }
      shared.ring.wait_full(at);
      const StageNote note = shared.notes[at.stage];
      if (held == Traits::kSpan || note.request != request) {
        ptx::bar_sync(kBarrierScorers, kConsumerThreads);
        ptx::griddepcontrol_wait();  // of block_scores: -inf is written before
        store_span<Traits>(p, r, shared, head_k, held, threadIdx.x);
        if (note.request < 0) return;
        ptx::bar_sync(kBarrierScorers, kConsumerThreads);
        held = 0;
        wanted = note.request;
        continue;
      }
      unsigned bad = note.bad_boxes;
      if (bad != 0) {
        const int key = warp_ * Traits::kKeys;
        bad = ((bad >> (key >> shift)) & 1) | ((bad >> ((key + 16) >> shift)) & 1) << 1;
      }
      float best[Traits::kSides * Traits::kTiles][2];
      reduce(best, q, at, note.step * kScoreStep + warp_ * Traits::kKeys, bad, r);
      at.advance();
      if (threadIdx.x == 0) shared.steps[held] = note.step;
      if (lane_ < 4) {
#pragma unroll
        for (int tile = 0; tile < Traits::kSides * Traits::kTiles; ++tile) {
          float* columns = shared.maxima[held][warp_] + tile * 8 + lane_ * 2;
          columns[0] = best[tile][0];
          columns[1] = best[tile][1];
        }
      }
      ++held;
    }
  }

 private:
  /// The maxima of this warp's keys of a stage, which it gives back.
  __device__ __forceinline__ void reduce(float (&best)[Traits::kSides * Traits::kTiles][2],
                                         const Columns<Traits>& q, RingPosition<Traits::kStages> at,
                                         int first, unsigned bad, const RequestRecord& r) {
    const std::uint8_t* stage = stages_ + at.stage * Traits::kTileBytes;
    StepKeys<Traits> keys;
    read_keys<Traits>(keys, stage, warp_, lane_);
    if constexpr (Traits::kFilter) {
      KeyBounds bounds;
      const int skew = params_.batch.page_size == 0 ? static_cast<int>(r.k_begin % kBoundRows) : 0;
      read_bounds<Traits>(bounds, shared_.bounds[at.stage], skew + warp_ * Traits::kKeys, lane_);
      shared_.ring.warp_release(at, lane_);
      reduce_filter<Traits>(best, keys, bounds, q, first, bad, lane_);
    } else if constexpr (Traits::kCodes) {
      const float* of_keys = shared_.scales[at.stage] + warp_ * Traits::kKeys;
      KeyScales scales;
      read_scales(scales, params_, of_keys, lane_);
      if (scales.odd) {
        const std::uint8_t* codes = stage + warp_ * Traits::kKeys * Traits::kRowBytes;
        reduce_odd_codes<Traits>(best, codes, of_keys, q, params_, r, first, bad, lane_);
        return shared_.ring.warp_release(at, lane_);
      }
      shared_.ring.warp_release(at, lane_);
      if constexpr (Traits::kNarrows) {
        if (q.narrow) return reduce_codes<Traits, __half>(best, keys, scales, q, first, bad, lane_);
      }
      reduce_codes<Traits, typename Traits::Item>(best, keys, scales, q, first, bad, lane_);
    } else {
      shared_.ring.warp_release(at, lane_);
      reduce_keys<Traits>(best, keys, q, first, bad, lane_);
    }
  }

  const ScoreParams& params_;
  ScoreShared<Traits>& shared_;
  const std::uint8_t* stages_;
  const int warp_;
  const int lane_;
};

}  // namespace msa::cuda::sm90::decode
