// SPDX-License-Identifier: MIT
// A consumer warp: its parts of its team's steps, 32 keys each (mma.sync, keys on M, tokens x heads
// on N). Maxima stay in shared memory until a span of steps is written. A dot product does not care
// in which order the contraction runs, so both operands take it in the order in which 16-byte loads
// deliver it.
#pragma once

#include <type_traits>

#include "cuda/common/decode/order.cuh"
#include "cuda/common/decode/score/codes.cuh"
#include "cuda/common/decode/score/filter.cuh"
#include "cuda/common/decode/score/keys.cuh"
#include "cuda/common/decode/score/packed.cuh"
#include "cuda/common/decode/score/steps.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/tile/key_box.cuh"

namespace msa::cuda::common::decode {

/// Writes the block scores of `held` steps of a span; `thread` of the team. A thread keeps to one
/// column: what its row sees takes longer to say than a maximum.
template <class Traits>
__device__ __forceinline__ void store_span(const ScoreParams& p,
                                           const typename ScoreShared<Traits>::Span& span,
                                           int head_k, int held, int thread) {
  if (held == 0) return;
  const RequestRecord r = span.request;
  const int shift = __ffs(p.batch.block_size) - 1;
  const int step_shift = __ffs(kScoreStep) - 1 - shift;  // of blocks
  const int count = p.batch.block_size / Traits::kKeys;  // of parts in a block
  const int num_blocks = (r.seqlen_k + p.batch.block_size - 1) >> shift;
  const int group = p.heads / p.heads_k;
  const int columns = r.seqlen_q * group;
  const int sharing = Traits::kTeamWarps * 32 / columns;  // threads of a column
  const int mine = thread / columns;
  if (mine >= sharing) return;
  const int column = thread - mine * columns;
  const int token = column / group;
  const std::int64_t row = r.q_begin + token;
  const int head = head_k * group + column - token * group;
  const RowBlocks blocks = row_blocks(p.batch, r, token);
  float* const scores = common::slots_of(p.scores, row, head);
  constexpr int kPitch = Traits::kSides * Traits::kColumns;
  const float* maxima = &span.maxima[0][0][column];  // part after part, keys of a step ascending
  for (int at = mine; at < held << step_shift; at += sharing) {
    const int step = at >> step_shift;
    const int block = (span.steps[step] << step_shift) + at - (step << step_shift);
    if (block >= num_blocks) continue;
    const float* parts = maxima + at * count * kPitch;
    float best = -INFINITY;
#pragma unroll 1
    for (int part = 0; part < count; ++part) best = fmaxf(best, parts[part * kPitch]);
    if (p.orders) {
      std::uint32_t order = blocks.order(best, block);
      if constexpr (Traits::kFilter) {
        common::row_of<std::uint32_t>(p.lower, row, head)[block] = order;
        auto* upper = common::row_of<std::uint32_t>(p.upper, row, head) + block * count;
        for (int part = 0; part < count; ++part)
          upper[part] = blocks.order(parts[part * kPitch + Traits::kColumns], block);
        if (order != kForced) order = kNoBlock;  // until its keys are scored
      }
      best = __uint_as_float(order);
    }
    scores[block * p.scores.stride_slot] = best;
  }
}

/// What comes with a part's keys in bytes.
struct NoFactors {};
template <class Traits>
using Factors = std::conditional_t<
    Traits::kFilter, KeyBounds,
    std::conditional_t<Traits::kCodes, KeyScales,
                       std::conditional_t<Traits::kPacked, KeyGroups, NoFactors>>>;

/// The first warps: score what the ring brings.
template <class Traits>
class ScoreConsumer {
 public:
  __device__ __forceinline__ ScoreConsumer(const ScoreParams& params, ScoreShared<Traits>& shared,
                                           const std::uint8_t* stages, int warp, int lane_)
      : params_(params),
        shared_(shared),
        stages_(stages),
        warp_(warp),
        lane_(lane_),
        first_chunk_(first_chunk<Traits>(first_part(), lane_)),
        shares_scale_(common::shares_scale(params.k_scales)) {}

  __device__ __forceinline__ void run() {
    const int team = warp_ / Traits::kTeamWarps;
    const int thread = (warp_ % Traits::kTeamWarps) * 32 + lane_;
    const ScoreParams& p = params_;
    if (Traits::kCodes && shares_scale_)
      shared_scale_ = common::scale_of(p.k_scales, 0, 0, blockIdx.y);
    ScoreShared<Traits>& shared = shared_;
    if constexpr (Traits::kPacked) {  // while the first step is loaded
      shared_scale_ = common::scale_of_all(p.k_groups);
      const int thread = static_cast<int>(threadIdx.x);
      if (has_rounded_table(p)) {
        common::fill_rounded_magnitudes(shared.rounded, thread, Traits::kConsumers * 32);
      } else {
        common::fill_magnitudes<typename Traits::Item>(shared.magnitudes, p.k_groups.rounded != 0,
                                                       shared_scale_, thread,
                                                       Traits::kConsumers * 32);
      }
      ptx::bar_sync(kBarrierConsumers, Traits::kConsumers * 32);
    }
    typename ScoreShared<Traits>::Span& span = shared.spans[team];
    float* const maxima = span.maxima[0][first_part()] + lane_ * 2;
    const int head_k = static_cast<int>(blockIdx.y);
    // Its queries arrive while the first step is loaded.
    int wanted = Share<Traits>(team % Traits::kProducers).likely_request(p);
    int request = -1;
    RequestRecord r{};
    Columns<Traits> q;
    int held = 0;
    RingPosition<Traits::kStages> at;
    for (int before = 0; before < team; ++before) at.advance();
    while (true) {
      if (request != wanted) {
        request = wanted;
        r = early_request(p.batch, p.records, request);
        if (thread == 0) span.request = r;  // for store_span: registers are few
        load_columns<Traits>(q, p, r, head_k, lane_);
      }
      shared.ring.wait_full(at);
      const StageNote note = shared.notes[at.stage];
      if (held == Traits::kSpan || note.request != request) {
        meet(team);
        ptx::griddepcontrol_wait();  // of block_scores: -inf is written before
        store_span<Traits>(p, span, head_k, held, thread);
        if (note.request < 0) return;
        meet(team);
        held = 0;
        wanted = note.request;
        continue;
      }
      float best[Traits::kParts][Traits::kSides * Traits::kTiles][2];
      reduce(best, q, at, note, r);
      at.template advance_by<Traits::kTeams>();
      if (thread == 0) span.steps[held] = note.step;
      if (lane_ < 4) {
#pragma unroll
        for (int i = 0; i < Traits::kParts; ++i) {
#pragma unroll
          for (int tile = 0; tile < Traits::kSides * Traits::kTiles; ++tile) {
            float* columns = maxima + held * kStepMaxima + i * kPartMaxima + tile * 8;
            columns[0] = best[i][tile][0];
            columns[1] = best[i][tile][1];
          }
        }
      }
      ++held;
    }
  }

 private:
  static constexpr int kTeamThreads = Traits::kTeamWarps * 32;
  static constexpr int kPartMaxima = Traits::kSides * Traits::kColumns;
  static constexpr int kStepMaxima = Traits::kStepParts * kPartMaxima;
  using Maxima = float[Traits::kSides * Traits::kTiles][2];

  /// Barriers whose number is known when the code is made: with others a CTA takes all 16.
  template <int kTeam = 0>
  __device__ __forceinline__ static void meet(int team) {
    if constexpr (kTeam + 1 < Traits::kTeams) {
      if (team != kTeam) return meet<kTeam + 1>(team);
    }
    ptx::bar_sync(kBarrierTeams + kTeam, kTeamThreads);
  }

  __device__ __forceinline__ int first_part() const {
    return warp_ % Traits::kTeamWarps * Traits::kParts;
  }

  /// The maxima of this warp's parts of a stage, which it gives back when all are read.
  __device__ __forceinline__ void reduce(Maxima (&best)[Traits::kParts], const Columns<Traits>& q,
                                         RingPosition<Traits::kStages> at, const StageNote& note,
                                         const RequestRecord& r) {
    const std::uint8_t* stage = stages_ + at.stage * Traits::kStageBytes;
    StepKeys<Traits> keys[Traits::kParts];
    Factors<Traits> factors[Traits::kParts];
    bool odd = false;
#pragma unroll
    for (int i = 0; i < Traits::kParts; ++i) {
      read_keys<Traits>(keys[i], stage + first_chunk_ + i * Traits::kKeys * Traits::kRowBytes);
      odd |= read_factors(factors[i], at, first_part() + i, r);
    }
    if (!odd) shared_.ring.release(at);
#pragma unroll
    for (int i = 0; i < Traits::kParts; ++i) {
      const int key = (first_part() + i) * Traits::kKeys;  // in the step
      const unsigned bad = note.bad_tiles >> (key / 16) & 3;
      const int first = note.step * kScoreStep + key;
      if constexpr (Traits::kFilter) {
        reduce_filter<Traits>(best[i], keys[i], factors[i], q, first, bad, lane_);
      } else if constexpr (Traits::kCodes) {
        if (odd && factors[i].odd) {
          reduce_odd_codes<Traits>(best[i], stage + key * Traits::kRowBytes, factors[i], q, params_,
                                   r, first, bad, lane_);
          continue;
        }
        if constexpr (Traits::kNarrows) {
          if (q.narrow) {
            reduce_codes<Traits, __half>(best[i], keys[i], factors[i], q, first, bad, lane_);
            continue;
          }
        }
        reduce_codes<Traits, typename Traits::Item>(best[i], keys[i], factors[i], q, first, bad,
                                                    lane_);
      } else if constexpr (Traits::kPacked) {
        if (!has_rounded_table(params_)) {
          reduce_packed<Traits, typename Traits::Item>(best[i], keys[i], factors[i], q,
                                                       shared_.magnitudes, shared_scale_, first,
                                                       bad, lane_);
          continue;
        }
        if constexpr (Traits::kNarrows) {
          if (q.narrow) {
            reduce_packed<Traits, __half>(best[i], keys[i], factors[i], q, shared_.rounded, 1.0f,
                                          first, bad, lane_);
            continue;
          }
        }
        reduce_packed<Traits, typename Traits::Item>(best[i], keys[i], factors[i], q,
                                                     shared_.rounded, 1.0f, first, bad, lane_);
      } else {
        reduce_keys<Traits>(best[i], keys[i], q, first, bad, lane_);
      }
    }
    if (odd) shared_.ring.release(at);
  }

  /// What comes with the keys of a part; whether some of them need the stage once more.
  __device__ __forceinline__ bool read_factors(Factors<Traits>& factors,
                                               RingPosition<Traits::kStages> at, int part,
                                               const RequestRecord& r) {
    const int key = part * Traits::kKeys;
    if constexpr (Traits::kFilter) {
      const int skew = params_.batch.page_size == 0 ? static_cast<int>(r.k_begin % kBoundRows) : 0;
      read_bounds<Traits>(factors, shared_.bounds[at.stage], skew + key, lane_,
                          params_.bounds.rotated != 0);
    } else if constexpr (Traits::kCodes) {
      if (shares_scale_) {
        share_scale(factors, shared_scale_);
      } else {
        read_scales(factors, shared_.scales[at.stage] + key, lane_);
      }
      return factors.odd;
    } else if constexpr (Traits::kPacked) {
      read_groups(factors, stages_ + at.stage * Traits::kStageBytes + Traits::kTileBytes +
                               first_groups(key, lane_));
    }
    return false;
  }

  const ScoreParams& params_;
  ScoreShared<Traits>& shared_;
  const std::uint8_t* stages_;
  const int warp_;
  const int lane_;
  const int first_chunk_;  // of this lane, in a stage
  const bool shares_scale_;
  float shared_scale_ = 1.0f;  // of all keys that this CTA reads
};

}  // namespace msa::cuda::common::decode
