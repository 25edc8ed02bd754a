// SPDX-License-Identifier: MIT
// The end of a tile: output and lse of a warp's rows. 16-bit output goes through the warp's rows of
// q (no longer needed), so that every row leaves as whole 16-byte vectors. Rows that ended
// non-finite are noted, to be computed again one by one.
#pragma once

#include "cuda/common/rows.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/geometry.cuh"
#include "cuda/mma/attend/consumer.cuh"

namespace msa::cuda::mma::attend {

template <class Traits>
struct Epilogue {
  using Item = typename Traits::Item;
  static constexpr int kOutputs = Traits::kHeadDim / 2;

  const common::attend::Params& params;
  const Job& job;
  const common::Folded<true>& folded;
  const int first;  // row of the product
  const int lane;

  __device__ __forceinline__ void store(float (&o)[kOutputs], common::attend::Softmax& softmax,
                                        std::uint8_t* q, bool suspect) const {
    softmax.finish();
    bool again = suspect && valid(first);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first + lane / 4 + 8 * r;
      const float inverse = folded.values(softmax.sum[r] == 0.0f ? 0.0f : 1.0f / softmax.sum[r]);
      float probe = softmax.sum[r] * 0.0f;  // NaN once anything of the row is not finite
#pragma unroll
      for (int x = 2 * r; x < kOutputs; x += 4) {
        probe = fmaf(o[x], 0.0f, fmaf(o[x + 1], 0.0f, probe));
        o[x] *= inverse;
        o[x + 1] *= inverse;
      }
      again |= valid(row) && probe != 0.0f;
      if (params.to.lse.data != nullptr && lane % 4 == 0 && valid(row))
        lse_at(row) = softmax.lse(r, folded.scores(params.scale_log2));
    }
    if (common::warp::any(again)) note_rows();
    if (params.to.f32 != 0) {
      store_f32(o);
    } else {
      store_staged(o, q);
    }
  }

 private:
  __device__ __forceinline__ bool valid(int row) const { return row < job.tokens * params.group; }

  __device__ __forceinline__ std::int64_t out_offset(int row) const {
    const int token = row / params.group;
    const std::int64_t head = std::int64_t{job.head} * params.group + (row - token * params.group);
    return job.split * params.stride_out_split +
           (std::int64_t{job.row} + token) * params.to.out.stride_t + head * params.to.out.stride_h;
  }

  __device__ __forceinline__ float& lse_at(int row) const {
    const int token = row / params.group;
    const std::int64_t head = std::int64_t{job.head} * params.group + (row - token * params.group);
    return (&common::item_of(params.to.lse, std::int64_t{job.row} + token,
                             head))[job.split * params.stride_lse_split];
  }

  /// Notes every token with rows in this product: it shares V among its rows, so that a NaN met by
  /// one token shows in others.
  __device__ __forceinline__ void note_rows() const {
    const int row = first + lane;
    if (lane >= 16 || !valid(row) || (lane != 0 && row % params.group != 0)) return;
    note(params.suspects,
         (std::int64_t{job.row} + row / params.group) * params.heads_kv + job.head);
  }

  __device__ __forceinline__ void store_f32(const float (&o)[kOutputs]) const {
    float* out = static_cast<float*>(params.to.out.data);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first + lane / 4 + 8 * r;
      if (!valid(row)) continue;
      float* at = out + out_offset(row) + common::fragment_column(lane);
#pragma unroll
      for (int x = 0; x < kOutputs / 4; ++x) {
        at[8 * x] = o[4 * x + 2 * r];
        at[8 * x + 1] = o[4 * x + 2 * r + 1];
      }
    }
  }

  __device__ __forceinline__ void store_staged(const float (&o)[kOutputs], std::uint8_t* q) const {
#pragma unroll
    for (int x = 0; x < kOutputs / 2; ++x) {
      const int row = first + lane / 4 + 8 * (x & 1);
      const int column = 8 * (x >> 1) + common::fragment_column(lane);
      *reinterpret_cast<std::uint32_t*>(q + common::swizzled_item(row, column, kTileRows)) =
          ptx::cvt_pack<Item>(o[2 * x], o[2 * x + 1]);
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
          *reinterpret_cast<const uint4*>(q + common::swizzled_item(row, column, kTileRows));
      Item* at = out + out_offset(row) + column;
      if (params.to.vectors != 0) {
        *reinterpret_cast<uint4*>(at) = vector;
      } else {
        const Item* items = reinterpret_cast<const Item*>(&vector);
#pragma unroll
        for (int i = 0; i < 8; ++i) at[i] = items[i];
      }
    }
  }
};

}  // namespace msa::cuda::mma::attend
