// SPDX-License-Identifier: MIT
// Decode scoring: keys stream once from memory straight into mma.sync fragments (keys on M, tokens
// x heads on N), no shared memory on the way. A dot product does not care in which order the
// contraction runs, so both operands take it in the order in which 16-byte loads deliver it. CTA =
// (slice of blocks, request, index-key head); a warp takes 32 keys at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/geometry.cuh"
#include "cuda/sm90/decode/launch.h"
#include "cuda/sm90/decode/request.cuh"
#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/ptx/copy.cuh"
#include "cuda/sm90/ptx/matrix.cuh"

namespace msa::cuda::sm90::decode {

/// kTiles: columns (tokens x heads of one index-key head) in tiles of 8.
template <class T, int kTilesOfColumns, int kDimension>
struct ScoreTraits {
  using Item = T;
  static constexpr int kTiles = kTilesOfColumns;
  static constexpr int kDim = kDimension;
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kUnit = 32;           // keys of one warp step: two m16 tiles
  static constexpr int kChunks = kDim / 32;  // 16-byte loads of a lane along one key
  static constexpr int kColumns = 8 * kTiles;
  // 64 registers of keys in flight a thread and 16 a column tile.
  static constexpr int kCtasPerSm = kTiles == 1 ? 3 : 1;
};

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
  q.min_limit = r.seqlen_k;
#pragma unroll
  for (int tile = 0; tile < Traits::kTiles; ++tile) {
    const int column = tile * 8 + lane / 4;
    const bool used = column < columns;
    const std::int64_t row = r.q_begin + (used ? column / group : 0);
    const int head = head_k * group + (used ? column % group : 0);
    const auto* items = static_cast<const typename Traits::Item*>(p.index_q) + row * p.stride_q_t +
                        head * p.stride_q_h;
#pragma unroll
    for (int chunk = 0; chunk < Traits::kChunks; ++chunk) {
      const uint4 x = *reinterpret_cast<const uint4*>(items + chunk * 32 + (lane & 3) * 8);
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

/// Address of a key row, clamped to keys that exist; `bad` where its page does not.
template <class Traits>
struct KeyRows {
  const typename Traits::Item* row[2];  // of the two m16 tiles of a unit, at this lane's chunk
  bool bad[2];
};

template <class Traits>
__device__ __forceinline__ KeyRows<Traits> locate_unit(const ScoreParams& p, const RequestRecord& r,
                                                       int request, int head_k, int unit,
                                                       int lane) {
  KeyRows<Traits> at;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    // Pages hold multiples of 16 tokens: a tile of 16 keys never straddles two.
    const int key = min(unit * Traits::kUnit + tile * 16, ((r.seqlen_k - 1) / 16) * 16);
    std::int64_t offset;
    at.bad[tile] = false;
    if (p.batch.page_size == 0) {
      offset = (r.k_begin + key) * p.stride_k_token;
    } else {
      const int page = key / p.batch.page_size;
      const int id = load_page(p.batch, request, page);
      at.bad[tile] = id < 0 || id >= p.batch.num_pages;
      offset = (at.bad[tile] ? 0 : id) * p.stride_k_page +
               (key - page * p.batch.page_size) * p.stride_k_token;
    }
    at.row[tile] = static_cast<const typename Traits::Item*>(p.index_k) + offset +
                   head_k * p.stride_k_head + (lane & 3) * 8;
  }
  return at;
}

/// Streamed once: past L1, first to leave L2's way.
__device__ __forceinline__ uint4 load_stream(const void* address) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(address));
  return x;
}

template <class Traits>
struct UnitKeys {
  uint4 items[2][2][Traits::kChunks];  // [m16 tile][row half][chunk]
};

template <class Traits>
__device__ __forceinline__ void load_unit(UnitKeys<Traits>& keys, const ScoreParams& p,
                                          const RequestRecord& r, const KeyRows<Traits>& at,
                                          int unit, int lane) {
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + half * 8;
      const int first = min(unit * Traits::kUnit + tile * 16, ((r.seqlen_k - 1) / 16) * 16);
      const int existing = min(row, r.seqlen_k - 1 - first);  // rows behind the last key repeat it
#pragma unroll
      for (int chunk = 0; chunk < Traits::kChunks; ++chunk) {
        keys.items[tile][half][chunk] =
            load_stream(at.row[tile] + existing * p.stride_k_token + chunk * 32);
      }
    }
  }
}

/// Maxima of one unit for this lane's two columns of every tile, over all 32 keys, in lanes 0 to 3.
template <class Traits>
__device__ __forceinline__ void reduce_unit(float (&best)[Traits::kTiles][2],
                                            const UnitKeys<Traits>& keys, const Queries<Traits>& q,
                                            const KeyRows<Traits>& at, int unit, int lane) {
  constexpr float kNegInf = -INFINITY;
  const bool masked = (unit + 1) * Traits::kUnit > q.min_limit || at.bad[0] || at.bad[1];
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
        const int key = unit * Traits::kUnit + tile * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool seen = key + (i / 2) * 8 < q.limit[column_tile][i & 1] && !at.bad[tile];
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
        x[i] = fmaxf(x[i], __shfl_xor_sync(0xffffffffu, x[i], lanes));
      best[column_tile][i] = x[i];
    }
  }
}

/// Writes the maxima of blocks first_block .. end_block from the units' maxima.
template <class Traits>
__device__ __forceinline__ void store_blocks(const ScoreParams& p, const RequestRecord& r,
                                             const float* units, int head_k, int first_block,
                                             int end_block) {
  const int units_per_block = p.batch.block_size / Traits::kUnit;
  const int group = p.heads / p.heads_k;
  const int columns = r.seqlen_q * group;
  const int blocks = end_block - first_block;
  for (int i = threadIdx.x; i < blocks * columns; i += Traits::kThreads) {
    const int column = i / blocks;
    const int block = i - column * blocks;
    float best = -INFINITY;
    for (int unit = 0; unit < units_per_block; ++unit) {
      best = fmaxf(best, units[(block * units_per_block + unit) * Traits::kColumns + column]);
    }
    const std::int64_t row = r.q_begin + column / group;
    const int head = head_k * group + column % group;
    p.scores.data[row * p.scores.stride_t + head * p.scores.stride_h +
                  (first_block + block) * p.scores.stride_block] = best;
  }
}

/// The slice of one CTA: units' maxima in shared memory, then block scores.
template <class Traits>
__device__ __forceinline__ bool score_slice(const ScoreParams& p, const RequestRecord& r,
                                            float* units) {
  const int request = blockIdx.y;
  const int head_k = blockIdx.z;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int num_blocks = static_cast<int>(ceil_div(r.seqlen_k, p.batch.block_size));
  const int first_block = blockIdx.x * p.blocks_per_slice;
  const int end_block = min(first_block + p.blocks_per_slice, num_blocks);
  if (first_block >= end_block || r.seqlen_q == 0) return false;
  Queries<Traits> q;
  load_queries<Traits>(q, p, r, head_k, lane);
  const int units_per_block = p.batch.block_size / Traits::kUnit;
  const int first_unit = first_block * units_per_block;
  const int end_unit = end_block * units_per_block;
  bool bad_page = false;
  for (int unit = first_unit + warp; unit < end_unit; unit += Traits::kWarps) {
    const KeyRows<Traits> at = locate_unit<Traits>(p, r, request, head_k, unit, lane);
    UnitKeys<Traits> keys;
    load_unit<Traits>(keys, p, r, at, unit, lane);
    float best[Traits::kTiles][2];
    reduce_unit<Traits>(best, keys, q, at, unit, lane);
    if (lane < 4) {
#pragma unroll
      for (int tile = 0; tile < Traits::kTiles; ++tile) {
        float* columns = units + (unit - first_unit) * Traits::kColumns + tile * 8 + lane * 2;
        columns[0] = best[tile][0];
        columns[1] = best[tile][1];
      }
    }
    bad_page = bad_page || at.bad[0] || at.bad[1];
  }
  __syncthreads();
  store_blocks<Traits>(p, r, units, head_k, first_block, end_block);
  return bad_page;
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kCtasPerSm)
    score_kernel(const __grid_constant__ ScoreParams p) {
  extern __shared__ float units[];  // [units of the slice][columns]
  ptx::griddepcontrol_launch_dependents();
  const int request = blockIdx.y;
  const RequestRecord r = early_request(p.batch, p.records, request);
  const bool bad_page = score_slice<Traits>(p, r, units);
  // Every CTA waits: the attention kernel takes this grid's end for the prologue's, too.
  ptx::griddepcontrol_wait();
  if (bad_page && threadIdx.x % 32 == 0) report(p.batch.status, request, -1, FaultKind::PageId);
}

}  // namespace msa::cuda::sm90::decode
