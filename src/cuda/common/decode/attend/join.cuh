// SPDX-License-Identifier: MIT
// Joining the shares of a row, the warps of a CTA, the CTAs of a cluster, or partials in memory,
// always in the same order; and what is written of it.
#pragma once

#include "cuda/common/decode/attend/consumer.cuh"
#include "cuda/common/join_by_lse.cuh"
#include "cuda/common/ptx/math.cuh"

namespace msa::cuda::common::decode {

/// Columns of one row, four neighbours of every 32: output not normalised, maximum and sum of the
/// row.
template <int kGroupsOfFour>
struct RowPart {
  static constexpr int kGroups = kGroupsOfFour;
  float4 out[kGroups];
  common::RowState state;
};

/// A row spread over 8 threads, the first columns of which are part_column(thread).
template <class Traits>
using RowEighth = RowPart<Traits::kDim / 32>;

__device__ __forceinline__ int part_column(int thread) { return thread % 8 * 4; }

/// A row's output of multiply_value_codes: four neighbours of every 16 columns are a lane's.
template <class Traits>
__device__ __forceinline__ void publish_code_columns(float* row, const WarpState<Traits>& s,
                                                     int half, int lane) {
  float unit = 1.0f;
  if constexpr (Traits::kUnits) unit = s.unit[half];
#pragma unroll
  for (int i = 0; i < Traits::kDimTiles; i += 2) {
    const float* even = s.out[i] + 2 * half;
    const float* odd = s.out[i + 1] + 2 * half;
    *reinterpret_cast<float4*>(row + i * 8 + (lane & 3) * 4) = {even[0] * unit, odd[0] * unit,
                                                                even[1] * unit, odd[1] * unit};
  }
}

/// The same of multiply_packed_values: eight of every 32 columns.
template <class Traits>
__device__ __forceinline__ void publish_packed_columns(float* row, const WarpState<Traits>& s,
                                                       int half, int lane) {
  float unit = 1.0f;
  if constexpr (Traits::kUnits) unit = s.unit[half];
#pragma unroll
  for (int i = 0; i < Traits::kDimTiles; i += 4) {
#pragma unroll
    for (int four = 0; four < 2; ++four) {
      const int j = 2 * half + four;
      *reinterpret_cast<float4*>(row + i * 8 + (lane & 3) * 8 + four * 4) = {
          s.out[i][j] * unit, s.out[i + 1][j] * unit, s.out[i + 2][j] * unit,
          s.out[i + 3][j] * unit};
    }
  }
}

/// Leaves the warp's share in shared memory, where the ring was: rows of `scratch` and `state`.
template <class Traits>
__device__ __forceinline__ void publish_share(WarpState<Traits>& s, AttendShared<Traits>& shared,
                                              float* scratch, int thread) {
  const int warp = thread / 32;
  const int lane = thread % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    s.sum[half] = quad::sum(s.sum[half]);
    if ((lane & 3) == 0) shared.state[warp][lane / 4 + half * 8] = {s.best[half], s.sum[half]};
    float* row = scratch + (warp * 16 + lane / 4 + half * 8) * Traits::kMergePitch;
    if constexpr (Traits::kPacked) {
      publish_packed_columns<Traits>(row, s, half, lane);
    } else if constexpr (Traits::kCodes) {
      publish_code_columns<Traits>(row, s, half, lane);
    } else {
      row += (lane & 3) * 2;
#pragma unroll
      for (int i = 0; i < Traits::kDimTiles; ++i) {
        *reinterpret_cast<float2*>(row + i * 8) = {s.out[i][2 * half], s.out[i][2 * half + 1]};
      }
    }
  }
}

/// Adds `weight` times a share's output to the part's.
template <int kGroups>
__device__ __forceinline__ void add_share(RowPart<kGroups>& part, float weight,
                                          const float4 (&out)[kGroups]) {
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    part.out[j].x += weight * out[j].x;
    part.out[j].y += weight * out[j].y;
    part.out[j].z += weight * out[j].z;
    part.out[j].w += weight * out[j].w;
  }
}

/// Joins the four warps' shares; thread t of the 128 consumers ends with an eighth of row t / 8.
template <class Traits>
__device__ __forceinline__ void join_warps(RowEighth<Traits>& part,
                                           const AttendShared<Traits>& shared, const float* scratch,
                                           float scale_log2, int thread) {
  const int row = thread / 8;
  part = {};
  const auto state_of = [&](int w) {
    const float2 state = shared.state[w][row];
    return common::RowState{state.x, state.y};
  };
  part.state = common::join_by_lse<Traits::kConsumers>(
      Traits::kConsumers, scale_log2, state_of, [&](int w, float weight) {
        const float* share = scratch + (w * 16 + row) * Traits::kMergePitch + part_column(thread);
        float4 out[RowEighth<Traits>::kGroups];
#pragma unroll
        for (int j = 0; j < RowEighth<Traits>::kGroups; ++j)
          out[j] = *reinterpret_cast<const float4*>(share + j * 32);
        add_share(part, weight, out);
      });
}

/// Index of a (row, head, tile) among all: arrivals and partial slots.
__device__ __forceinline__ std::int64_t merge_index(const AttendParams& p, const Item& item) {
  return (item.row * p.heads_kv + item.head) * p.tiles + item.tile;
}

/// A barrier of the consumers, or of the one warp that rehearses.
template <class Traits>
__device__ __forceinline__ void meet_consumers(bool alone) {
  if (alone) {
    __syncwarp();
  } else {
    ptx::bar_sync(kBarrierAttend, Traits::kConsumers * 32);
  }
}

/// The splits of one row, in split order, from memory. States first, through shared memory, so that
/// the partials' loads do not wait for each other: one after the other, 16 splits took 11 us.
template <class Traits>
__device__ __forceinline__ void join_splits(RowEighth<Traits>& part, const AttendParams& p,
                                            std::int64_t base, float* scratch, int thread,
                                            bool rehearsal) {
  constexpr int kThreads = Traits::kConsumers * 32;
  auto* states = reinterpret_cast<float2*>(scratch);  // [splits, 16]
  for (int i = thread; i < p.splits * 16; i += kThreads)
    states[i] = __ldcg(p.partial_state + base + i);
  meet_consumers<Traits>(rehearsal);
  const int row = thread / 8;
  part = {};
  const auto state_of = [&](int i) {
    const float2 state = states[i * 16 + row];
    return common::RowState{state.x, state.y};
  };
  const float* share = p.partial_out + (base + row) * Traits::kDim + part_column(thread);
  part.state = common::join_by_lse<4>(p.splits, p.scale_log2, state_of, [&](int, float weight) {
    float4 out[RowEighth<Traits>::kGroups];
#pragma unroll
    for (int j = 0; j < RowEighth<Traits>::kGroups; ++j)
      out[j] = __ldcg(reinterpret_cast<const float4*>(share + j * 32));
    add_share(part, weight, out);
    share += 16 * Traits::kDim;
  });
}

/// Publishes this split; true in the CTA that came last, whose `part` then holds the merge of all
/// splits in split order. A rehearsal publishes nothing and merges whatever lies there.
template <class Traits>
__device__ __forceinline__ bool merge_splits(RowEighth<Traits>& part, const AttendParams& p,
                                             const Item& item, AttendShared<Traits>& shared,
                                             float* scratch, int thread, bool rehearsal) {
  const int row = thread / 8;
  const std::int64_t index = merge_index(p, item);
  const std::int64_t base = index * p.splits * 16;  // rows of partial_out, entries of partial_state
  const std::int64_t mine = base + item.split * 16 + row;
#pragma unroll
  for (int j = 0; j < RowEighth<Traits>::kGroups; ++j) {
    if (rehearsal) continue;
    __stcg(reinterpret_cast<float4*>(p.partial_out + mine * Traits::kDim + part_column(thread) +
                                     j * 32),
           part.out[j]);
  }
  if (thread % 8 == 0 && !rehearsal)
    __stcg(p.partial_state + mine, {part.state.top, part.state.sum});
  __threadfence();
  meet_consumers<Traits>(rehearsal);
  if (thread == 0)
    shared.last_arrival = atomicAdd(p.arrivals + index, 1u) == static_cast<unsigned>(p.splits - 1);
  meet_consumers<Traits>(rehearsal);
  if (shared.last_arrival == 0 && !rehearsal) return false;
  __threadfence();
  join_splits<Traits>(part, p, base, scratch, thread, rehearsal);
  return true;
}

/// The lse of a row. Its sum is written out, so that every kernel rounds it alike.
__device__ __forceinline__ float lse_of_row(const AttendParams& p, const common::RowState& state) {
  if (state.sum == 0.0f) return common::kMinusInf;
  return fmaf(state.top * p.scale_log2, common::kLn2, ptx::lg2(state.sum) * common::kLn2);
}

/// store_row into the boxes of all ranks, this one's first.
template <class Traits, int kGroups>
__device__ __forceinline__ void store_row_everywhere(const RanksParamsOf<Traits>& p,
                                                     const RowPart<kGroups>& part, std::int64_t row,
                                                     int head, int column) {
  const bool empty = part.state.sum == 0.f;
  const float inverse = common::inverse_of(part.state.sum);
  float* const out = common::row_of<float>(p.to.out, row, head) + column;
  float* const lse_at = &common::item_of(p.to.lse, row, head);
  const float lse = lse_of_row(p, part.state);
#pragma unroll 1
  for (int n = 0; n < p.among.ranks; ++n) {
    const int to =
        p.among.rank + n < p.among.ranks ? p.among.rank + n : p.among.rank + n - p.among.ranks;
    const std::int64_t away = p.among.states[to] / static_cast<std::int64_t>(sizeof(float));
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const float4& x = part.out[j];
      float4 values = {x.x * inverse, x.y * inverse, x.z * inverse, x.w * inverse};
      if (empty) values = {};
      *reinterpret_cast<float4*>(out + away + j * 32) = values;
    }
    if (column == 0) lse_at[away] = lse;
  }
}

/// Normalises and writes four columns of every 32 of one row, from `column` on; `lse` goes with
/// column 0.
template <class Traits, int kGroups>
__device__ __forceinline__ void store_row(const AttendParams& p, const RowPart<kGroups>& part,
                                          std::int64_t row, int head, int column) {
  if constexpr (Traits::kRanks) {
    return store_row_everywhere<Traits>(static_cast<const RanksParamsOf<Traits>&>(p), part, row,
                                        head, column);
  }
  using T = typename Traits::Item;
  const bool empty = part.state.sum == 0.f;  // nothing visible, or only scores of -inf
  const float inverse = common::inverse_of(part.state.sum);
  const std::int64_t at = row * p.to.out.stride_t + head * p.to.out.stride_h + column;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    const float4& x = part.out[j];
    float values[4] = {x.x * inverse, x.y * inverse, x.z * inverse, x.w * inverse};
    if (empty) values[0] = values[1] = values[2] = values[3] = 0.f;
    if (p.to.vectors) {
      *reinterpret_cast<uint2*>(static_cast<T*>(p.to.out.data) + at + j * 32) = {
          ptx::cvt_pack<T>(values[0], values[1]), ptx::cvt_pack<T>(values[2], values[3])};
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (p.to.f32) {
        static_cast<float*>(p.to.out.data)[at + j * 32 + i] = values[i];
      } else {
        static_cast<T*>(p.to.out.data)[at + j * 32 + i] = static_cast<T>(values[i]);
      }
    }
  }
  if (p.to.lse.data != nullptr && column == 0) {
    common::item_of(p.to.lse, row, head) = lse_of_row(p, part.state);
  }
}

}  // namespace msa::cuda::common::decode
