// SPDX-License-Identifier: MIT
// A consumer warp: 32 keys of every step (mma.sync, keys on M, tokens x heads on N). Maxima stay in
// shared memory until a span of steps is written. A dot product does not care in which order the
// contraction runs, so both operands take it in the order in which 16-byte loads deliver it.
#pragma once

#include "cuda/common/number.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/sm90/decode/order.cuh"
#include "cuda/sm90/decode/score/steps.cuh"
#include "cuda/sm90/ptx/matrix.cuh"
#include "cuda/sm90/tile/key_box.cuh"

namespace msa::cuda::sm90::decode {

/// Fragments of the query columns: lane / 4 is the column in its tile, lane % 4 the 16-byte chunk.
template <class Traits>
struct Queries {
  std::uint32_t fragments[Traits::kTiles][Traits::kChunks][4];
  int limit[Traits::kTiles][2];  // visible keys of the accumulator columns that this lane holds
  int min_limit;                 // keys below it are seen by every column
};

template <class Traits>
__device__ __forceinline__ void load_queries(Queries<Traits>& q, const ScoreParams& p,
                                             const RequestRecord& r, int head_k, int lane) {
  const int group = p.heads / p.heads_k;
  const int columns = r.seqlen_q * group;
#pragma unroll
  for (int tile = 0; tile < Traits::kTiles; ++tile) {
    const int column = tile * 8 + lane / 4;
    const bool used = column < columns;
    const std::int64_t row = r.q_begin + (used ? column / group : 0);
    const int head = head_k * group + (used ? column % group : 0);
    const auto* items = common::row_of<typename Traits::Item>(p.index_q, row, head);
#pragma unroll
    for (int chunk = 0; chunk < Traits::kChunks; ++chunk) {
      uint4 x{0, 0, 0, 0};
      if (used) x = *reinterpret_cast<const uint4*>(items + chunk * 32 + (lane & 3) * 8);
      q.fragments[tile][chunk][0] = x.x;
      q.fragments[tile][chunk][1] = x.y;
      q.fragments[tile][chunk][2] = x.z;
      q.fragments[tile][chunk][3] = x.w;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int held = tile * 8 + (lane & 3) * 2 + i;
      q.limit[tile][i] = held < columns ? visible_keys(r, held / group, p.batch.causal != 0) : 0;
    }
  }
  q.min_limit = visible_keys(r, 0, p.batch.causal != 0);  // the first token sees least
}

/// A warp's keys of one step.
template <class Traits>
struct StepKeys {
  uint4 items[2][2][Traits::kChunks];  // [m16 tile][row half][chunk]
};

template <class Traits>
__device__ __forceinline__ void read_keys(StepKeys<Traits>& keys, const std::uint8_t* stage,
                                          int warp, int lane) {
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint8_t* row =
          stage + (warp * Traits::kKeys + tile * 16 + half * 8 + lane / 4) * Traits::kRowBytes;
#pragma unroll
      for (int chunk = 0; chunk < Traits::kChunks; ++chunk) {
        keys.items[tile][half][chunk] =
            *reinterpret_cast<const uint4*>(row + chunk * 64 + (lane & 3) * 16);
      }
    }
  }
}

/// Maxima of a warp's keys, the first of which is `first`, for this lane's two columns of every
/// tile; equal in all lanes of a column. `bad`: m16 tiles without a page, as bits.
template <class Traits>
__device__ __forceinline__ void reduce_keys(float (&best)[Traits::kTiles][2],
                                            const StepKeys<Traits>& keys, const Queries<Traits>& q,
                                            int first, unsigned bad, int lane) {
  constexpr float kNegInf = -INFINITY;
  const bool masked = first + Traits::kKeys > q.min_limit || bad != 0;
#pragma unroll
  for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile) {
    float x[2] = {kNegInf, kNegInf};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      float d[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int chunk = 0; chunk < Traits::kChunks; ++chunk) {
        const uint4& upper = keys.items[tile][0][chunk];
        const uint4& lower = keys.items[tile][1][chunk];
        const std::uint32_t(&b)[4] = q.fragments[column_tile][chunk];
        ptx::mma_m16n8k16<typename Traits::Item>(d, {upper.x, lower.x, upper.y, lower.y}, b[0],
                                                 b[1]);
        ptx::mma_m16n8k16<typename Traits::Item>(d, {upper.z, lower.z, upper.w, lower.w}, b[2],
                                                 b[3]);
      }
      if (masked) {
        const int key = first + tile * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool seen =
              key + (i / 2) * 8 < q.limit[column_tile][i & 1] && ((bad >> tile) & 1) == 0;
          d[i] = seen ? d[i] : kNegInf;
        }
      }
      x[0] = fmaxf(x[0], fmaxf(d[0], d[2]));  // fmaxf drops NaN: a NaN token score counts as -inf
      x[1] = fmaxf(x[1], fmaxf(d[1], d[3]));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2)
        x[i] = fmaxf(x[i], __shfl_xor_sync(common::kAllLanes, x[i], lanes));
      best[column_tile][i] = x[i];
    }
  }
}

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
  const float* maxima = &shared.maxima[0][0][0];  // warp after warp, keys of a step ascending
  for (int i = thread; i < held * per_step * columns; i += Traits::kConsumers * 32) {
    const int at = i / columns;
    const int column = i - at * columns;
    const int block = shared.steps[at / per_step] * per_step + at % per_step;
    if (block >= num_blocks) continue;
    float best = -INFINITY;
    for (int warp = 0; warp < warps; ++warp)
      best = fmaxf(best, maxima[(at * warps + warp) * Traits::kColumns + column]);
    if (p.orders) best = __uint_as_float(row_blocks(p.batch, r, column / group).order(best, block));
    const std::int64_t row = r.q_begin + column / group;
    const int head = head_k * group + column % group;
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
    Queries<Traits> q;
    int held = 0;
    RingPosition<Traits::kStages> at;
    while (true) {
      if (request != wanted) {
        request = wanted;
        r = early_request(p.batch, p.records, request);
        load_queries<Traits>(q, p, r, head_k, lane_);
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
      StepKeys<Traits> keys;
      read_keys<Traits>(keys, stages_ + at.stage * Traits::kTileBytes, warp_, lane_);
      shared.ring.warp_release(at, lane_);
      at.advance();
      unsigned bad = note.bad_boxes;
      if (bad != 0) {
        const int key = warp_ * Traits::kKeys;
        bad = ((bad >> (key >> shift)) & 1) | ((bad >> ((key + 16) >> shift)) & 1) << 1;
      }
      float best[Traits::kTiles][2];
      reduce_keys<Traits>(best, keys, q, note.step * kScoreStep + warp_ * Traits::kKeys, bad,
                          lane_);
      if (threadIdx.x == 0) shared.steps[held] = note.step;
      if (lane_ < 4) {
#pragma unroll
        for (int tile = 0; tile < Traits::kTiles; ++tile) {
          float* columns = shared.maxima[held][warp_] + tile * 8 + lane_ * 2;
          columns[0] = best[tile][0];
          columns[1] = best[tile][1];
        }
      }
      ++held;
    }
  }

 private:
  const ScoreParams& params_;
  ScoreShared<Traits>& shared_;
  const std::uint8_t* stages_;
  const int warp_;
  const int lane_;
};

}  // namespace msa::cuda::sm90::decode
