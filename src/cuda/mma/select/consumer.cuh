// SPDX-License-Identifier: MIT
// A consumer warp: 32 rows of (token, index head) on the tensor cores against stages of 64 keys;
// the maximum over each block's visible keys.
#pragma once

#include "cuda/common/ptx/matrix.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/tile/fragment.cuh"
#include "cuda/common/tile/swizzle.cuh"
#include "cuda/mma/select/traits.cuh"

namespace msa::cuda::mma::select {

namespace ptx = common::ptx;

/// The rows that a lane multiplies: lane / 4 and that + 8 of either m16 tile.
inline constexpr int kLaneRows = 4;

/// Where the i-th of them lies, counted from the first.
__device__ __forceinline__ constexpr int row_offset(int i) { return i / 2 * 16 + i % 2 * 8; }

/// Block scores of one row a lane on their way to memory: after join_quad lane i of a quad holds
/// those of its i-th row.
class ScoreWriter {
 public:
  /// `row`: the lane's, of the tile.
  __device__ __forceinline__ ScoreWriter(const Params& p, const Work& work, int row) : params_(p) {
    row_ = nullptr;
    if (row >= work.valid_rows) return;
    if (p.scratch) {
      row_ = p.scores.data +
             ((static_cast<std::int64_t>(work.slot) * p.groups + work.group) * kTileRows + row) *
                 p.scores.stride_h;
    } else {
      row_ = common::slots_of(p.scores, work.rows.q_begin + row / p.heads,
                              work.group * p.heads + row % p.heads);
    }
  }

  /// Whole float4s of the scratch go out as they fill.
  __device__ __forceinline__ void put(float score, int block) {
    if (!params_.scratch) {
      if (row_ != nullptr && block < params_.columns)
        row_[block * params_.scores.stride_slot] = score;
      return;
    }
    const int at = block % 4;
    pending_.x = at == 0 ? score : pending_.x;
    pending_.y = at == 1 ? score : pending_.y;
    pending_.z = at == 2 ? score : pending_.z;
    pending_.w = at == 3 ? score : pending_.w;
    if (at == 3) flush(block / 4);
  }

  /// The last, perhaps unfilled float4 before block `end`; rows have room for it.
  __device__ __forceinline__ void finish(int end) {
    if (params_.scratch && end % 4 != 0) flush(end / 4);
  }

 private:
  __device__ __forceinline__ void flush(int vector) {
    if (row_ != nullptr) reinterpret_cast<float4*>(row_)[vector] = pending_;
  }

  const Params& params_;
  float* row_;  // nullptr: no row of the tile
  float4 pending_{};
};

/// Joins the maxima of a quad: lane i of it ends with that of its rows' i-th.
__device__ __forceinline__ float join_quad(const float (&best)[kLaneRows], int lane) {
  const bool odd = (lane & 1) != 0;
  float kept[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float mine = odd ? best[2 * i + 1] : best[2 * i];
    const float other = odd ? best[2 * i] : best[2 * i + 1];
    kept[i] = fmaxf(mine, __shfl_xor_sync(kAllLanes, other, 1));
  }
  const bool upper = (lane & 2) != 0;
  return fmaxf(upper ? kept[1] : kept[0], __shfl_xor_sync(kAllLanes, upper ? kept[0] : kept[1], 2));
}

template <class Traits>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const Params& params, typename Traits::Shared& shared,
                                      int warp)
      : params_(params),
        shared_(shared),
        warp_first_(warp * Traits::kWarpRows),
        lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void run() {
    WorkQueue<Traits> queue(shared_);
    int valid_rows;
    while ((valid_rows = queue.wait_next()) >= 0) {
      const int first = queue.first() * Traits::kStagesPerTile;
      const int end = queue.end() * Traits::kStagesPerTile;
      if (warp_first_ >= valid_rows) {  // keeps the ring turning
        queue.done();
        for (int stage = first; stage < end; ++stage, at_.advance()) {
          shared_.ring.wait_full(at_);
          shared_.ring.release(at_);
        }
        continue;
      }
      const Work& work = queue.work();
      ScoreWriter writer(params_, work, first_row() + row_offset(lane_ & 3));
      load_queries(work);
      score(work, writer, first, end);
      queue.done();
    }
  }

 private:
  using Scores = float[2][Traits::kGroupTiles][4];

  /// The first row of the tile that this lane multiplies.
  __device__ __forceinline__ int first_row() const { return warp_first_ + lane_ / 4; }

  /// A fragments of this lane's rows for the whole contraction. Rows that are not there repeat the
  /// last one: their scores go nowhere.
  __device__ __forceinline__ void load_queries(const Work& work) {
    const Params& p = params_;
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
      const int row = min(first_row() + row_offset(i), work.valid_rows - 1);
      const auto* q = common::row_of<std::uint16_t>(p.queries, work.rows.q_begin + row / p.heads,
                                                    work.group * p.heads + row % p.heads) +
                      common::fragment_column(lane_);
#pragma unroll
      for (int step = 0; step < Traits::kSteps; ++step) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          a_[i / 2][step][part * 2 + i % 2] =
              __ldg(reinterpret_cast<const std::uint32_t*>(q + step * 16 + part * 8));
        }
      }
    }
  }

  /// Stages [first, end) of the request's keys.
  __device__ __forceinline__ void score(const Work& work, ScoreWriter& writer, int first, int end) {
    // Keys that every row of the warp sees.
    const int visible_from =
        visible_keys(work.rows, warp_first_ / params_.heads, params_.batch.causal != 0);
    const bool halves = params_.batch.block_size == kTileKeys;  // two stages are a block
    float best[kLaneRows];
#pragma unroll 1
    for (int stage = first; stage < end; ++stage, at_.advance()) {
      if (!halves || stage % 2 == 0) best[0] = best[1] = best[2] = best[3] = kMinusInf;
      shared_.ring.wait_full(at_);
      const std::uint32_t bad_boxes = shared_.bad_boxes[at_.stage];
      const bool masked = (stage + 1) * Traits::kKeys > visible_from || bad_boxes != 0;
#pragma unroll
      for (int group = 0; group < Traits::kKeys / Traits::kGroupKeys; ++group) {
        Scores d;
        multiply(d, shared_.keys[at_.stage], group);
        if (masked) mask(d, work, stage, bad_boxes, group);
        reduce(best, d);
      }
      shared_.ring.release(at_);
      if (!halves || stage % 2 == 1) writer.put(join_quad(best, lane_), halves ? stage / 2 : stage);
    }
    writer.finish(halves ? end / 2 : end);
  }

  __device__ __forceinline__ void multiply(Scores& d, const std::uint8_t* keys, int group) {
#pragma unroll
    for (int tile = 0; tile < Traits::kGroupTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) d[0][tile][i] = d[1][tile][i] = 0.0f;
    }
#pragma unroll
    for (int pair = 0; pair < Traits::kSteps / 2; ++pair) {  // two k16 steps a load
      const int chunk = pair * 4 + (lane_ >> 3);
#pragma unroll
      for (int tile = 0; tile < Traits::kGroupTiles; ++tile) {
        const int row = group * Traits::kGroupKeys + tile * 8 + (lane_ & 7);
        std::uint32_t b[4];
        ptx::ldmatrix_x4(
            b, keys + chunk / 8 * Traits::kPanelBytes + common::swizzled_chunk(row, chunk % 8));
#pragma unroll
        for (int step = 0; step < 2; ++step) {
#pragma unroll
          for (int half = 0; half < 2; ++half)
            ptx::mma_m16n8k16<typename Traits::Item>(d[half][tile], a_[half][2 * pair + step],
                                                     b[2 * step], b[2 * step + 1]);
        }
      }
    }
  }

  /// Puts -inf where a row does not see a key, or where the key's page is not there. What rows see
  /// is said again for each of the few stages where it matters, rather than kept.
  __device__ __forceinline__ void mask(Scores& d, const Work& work, int stage,
                                       std::uint32_t bad_boxes, int group) const {
    const int first = stage * Traits::kKeys;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int visible[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = min(first_row() + row_offset(half * 2 + i), work.valid_rows - 1);
        visible[i] =
            visible_keys(work.rows, row / params_.heads, params_.batch.causal != 0) - first;
      }
#pragma unroll
      for (int tile = 0; tile < Traits::kGroupTiles; ++tile) {
        common::mask_fragment(d[half][tile], lane_, [&](int row, int column) {
          const int key = group * Traits::kGroupKeys + tile * 8 + column;
          return key >= visible[row] || (bad_boxes >> (key / kBoxKeys) & 1) != 0;
        });
      }
    }
  }

  /// fmaxf drops NaN: a NaN token score counts as -inf.
  static __device__ __forceinline__ void reduce(float (&best)[kLaneRows], const Scores& d) {
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
#pragma unroll
      for (int tile = 0; tile < Traits::kGroupTiles; ++tile) {
        const float(&x)[4] = d[i / 2][tile];
        best[i] = fmaxf(best[i], fmaxf(x[i % 2 * 2], x[i % 2 * 2 + 1]));
      }
    }
  }

  const Params& params_;
  typename Traits::Shared& shared_;
  const int warp_first_;  // row of the tile
  const int lane_;
  RingPosition<Traits::kStages> at_{};
  std::uint32_t a_[2][Traits::kSteps][4];  // of either m16 tile
};

}  // namespace msa::cuda::mma::select
