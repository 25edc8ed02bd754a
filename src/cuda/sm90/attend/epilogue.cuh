// SPDX-License-Identifier: MIT
// The end of a tile: output and lse of one warpgroup's 64 rows. 16-bit output goes through the
// tile's q stage (no longer needed), so that every row leaves as whole 16-byte vectors. Rows that
// ended non-finite are noted, to be computed again one by one.
#pragma once

#include "cuda/common/attend/softmax.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/geometry.cuh"
#include "cuda/sm90/attend/traits.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/ptx/matrix.cuh"
#include "cuda/sm90/tile/fragment.cuh"
#include "cuda/sm90/tile/swizzle.cuh"

namespace msa::cuda::sm90::attend {

using common::attend::row_max;
using common::attend::Softmax;

template <class Traits>
struct Epilogue {
  static constexpr int kOutputs = Traits::kHeadDim / 2;
  using Item = typename Traits::Item;

  const Params& params;
  const Job& job;
  const int warpgroup;
  const int thread;  // in the warpgroup
  const common::Folded<Traits::kFolds>& folded;

  /// `stage` is the tile's q buffer; no warp of the warpgroup reads it any more.
  __device__ __forceinline__ void store(float (&o)[kOutputs], const Softmax& softmax,
                                        std::uint8_t* stage, bool suspect) const {
    const int row = warpgroup * 64 + fragment_row(thread);
    bool again = suspect && valid(row & ~15);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float inverse = folded.values(softmax.sum[r] == 0.0f ? 0.0f : 1.0f / softmax.sum[r]);
      float probe = softmax.sum[r] * 0.0f;  // NaN once anything of the row is not finite
#pragma unroll
      for (int x = 2 * r; x < kOutputs; x += 4) {
        probe = fmaf(o[x], 0.0f, fmaf(o[x + 1], 0.0f, probe));
        o[x] *= inverse;
        o[x + 1] *= inverse;
      }
      again |= valid(row + 8 * r) && probe != 0.0f;
      if (params.to.lse.data != nullptr && (thread & 3) == 0 && valid(row + 8 * r)) {
        lse_at(row + 8 * r) = softmax.lse(r, folded.scores(params.scale_log2));
      }
    }
    finish(o, stage, again);
  }

  /// Rows as they are to be stored. `again`: some row of the thread ended non-finite.
  __device__ __forceinline__ void finish(const float (&o)[kOutputs], std::uint8_t* stage,
                                         bool again) const {
    if (common::warp::any(again)) note_rows();
    if (params.to.f32) {
      store_f32(o);
    } else {
      store_staged(o, stage);
    }
  }

  __device__ __forceinline__ bool valid(int row) const { return row < job.tokens * params.group; }

 private:
  __device__ __forceinline__ std::int64_t out_offset(int row) const {
    const int token = row / params.group;
    const std::int64_t head =
        static_cast<std::int64_t>(job.head) * params.group + (row - token * params.group);
    return job.split * params.stride_out_split +
           (static_cast<std::int64_t>(job.row) + token) * params.to.out.stride_t +
           head * params.to.out.stride_h;
  }

  __device__ __forceinline__ float& lse_at(int row) const {
    const int token = row / params.group;
    const std::int64_t head =
        static_cast<std::int64_t>(job.head) * params.group + (row - token * params.group);
    return (&common::item_of(params.to.lse, static_cast<std::int64_t>(job.row) + token,
                             head))[job.split * params.stride_lse_split];
  }

  /// Notes every token with rows in this warp: a product shares V among all rows of the tile, so
  /// that a NaN met by one token shows in others.
  __device__ __forceinline__ void note_rows() const {
    const int lane = thread & 31;
    const int row = warpgroup * 64 + (thread >> 5) * 16 + lane;
    if (lane >= 16 || !valid(row) || (lane != 0 && row % params.group != 0)) return;
    note(params.suspects,
         (static_cast<std::int64_t>(job.row) + row / params.group) * params.heads_kv + job.head);
  }

  __device__ __forceinline__ void store_f32(const float (&o)[kOutputs]) const {
    float* out = static_cast<float*>(params.to.out.data);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warpgroup * 64 + fragment_row(thread) + 8 * r;
      if (!valid(row)) continue;
      float* at = out + out_offset(row) + fragment_column(thread);
#pragma unroll
      for (int x = 0; x < kOutputs / 4; ++x) {
        at[8 * x] = o[4 * x + 2 * r];
        at[8 * x + 1] = o[4 * x + 2 * r + 1];
      }
    }
  }

  /// A warp writes its 16 rows into its own part of the stage and reads them back a row at a time.
  __device__ __forceinline__ void store_staged(const float (&o)[kOutputs],
                                               std::uint8_t* stage) const {
    const int lane = thread & 31;
    const int first = warpgroup * 64 + (thread >> 5) * 16;  // row of the warp's part
#pragma unroll
    for (int x = 0; x < kOutputs / 8;
         ++x) {  // 16 columns a turn: matrices (rows 0-7, 8-15) x (columns 0-7, 8-15)
      const std::uint32_t packed[4] = {ptx::cvt_pack<Item>(o[8 * x], o[8 * x + 1]),
                                       ptx::cvt_pack<Item>(o[8 * x + 2], o[8 * x + 3]),
                                       ptx::cvt_pack<Item>(o[8 * x + 4], o[8 * x + 5]),
                                       ptx::cvt_pack<Item>(o[8 * x + 6], o[8 * x + 7])};
      const int row = first + (lane & 15);
      ptx::stmatrix_x4(stage + swizzled_item(row, 16 * x + (lane >> 4) * 8, kTileRows), packed);
    }
    __syncwarp();
    constexpr int kVectors = Traits::kHeadDim / 8;  // 16-byte vectors of a row
    constexpr int kRows = 32 / kVectors;            // rows a turn
    Item* out = static_cast<Item*>(params.to.out.data);
#pragma unroll
    for (int turn = 0; turn < 16 / kRows; ++turn) {
      const int row = first + turn * kRows + lane / kVectors;
      const int column = lane % kVectors * 8;
      if (!valid(row)) continue;
      const uint4 vector =
          *reinterpret_cast<const uint4*>(stage + swizzled_item(row, column, kTileRows));
      Item* at = out + out_offset(row) + column;
      if (params.to.vectors) {
        *reinterpret_cast<uint4*>(at) = vector;
      } else {
        const Item* items = reinterpret_cast<const Item*>(&vector);
#pragma unroll
        for (int i = 0; i < 8; ++i) at[i] = items[i];
      }
    }
    ptx::fence_proxy_async_shared();  // the copy engine writes the next q here
  }
};

}  // namespace msa::cuda::sm90::attend
