// SPDX-License-Identifier: MIT
// What a consumer warp multiplies: the query columns, its keys of a step, and their maxima.
#pragma once

#include <type_traits>

#include "cuda/common/decode/request.cuh"
#include "cuda/common/decode/score/traits.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/ptx/matrix.cuh"
#include "cuda/common/rows.cuh"

namespace msa::cuda::common::decode {

/// Fragments of the query columns: lane / 4 is the column in its tile; lane % 4 holds the items
/// that it will load of a key, in pairs.
template <class Traits>
struct Queries {
  std::uint32_t fragments[Traits::kTiles][Traits::kChunks][Traits::kPairs];
  int limit[Traits::kTiles][2];  // visible keys of the accumulator columns that this lane holds
  int min_limit;                 // keys below it are seen by every column
  // Beside codes: the fragments are f16, and what the products of a column are multiplied by.
  bool narrow;
  float unit[Traits::kTiles][2];
};

/// Queries in bf16 become f16 where that is exact, each column times a power of two: codes are
/// widened to f16 in one instruction a pair and to bf16 in four. Items up to 2^32 below the
/// largest of their column fit.
template <class Traits>
__device__ __forceinline__ void narrow_queries(Queries<Traits>& q, int lane) {
  static_assert(std::is_same_v<typename Traits::Item, __nv_bfloat16>, "f16 is narrow");
  constexpr int kTop = 15;  // exponent of the largest item
  std::uint32_t narrow[Traits::kTiles][Traits::kChunks][Traits::kPairs];
  bool exact = true;
#pragma unroll
  for (int tile = 0; tile < Traits::kTiles; ++tile) {
    float largest = 0.f;
#pragma unroll
    for (int n = 0; n < Traits::kChunks * Traits::kPairs; ++n) {
      const float2 x =
          ptx::cvt_unpack<__nv_bfloat16>(q.fragments[tile][n / Traits::kPairs][n % Traits::kPairs]);
      largest = ptx::max_nan(largest, ptx::max_nan(fabsf(x.x), fabsf(x.y)));
    }
    largest = ptx::max_nan(largest, __shfl_xor_sync(common::kAllLanes, largest, 1));
    largest = ptx::max_nan(largest, __shfl_xor_sync(common::kAllLanes, largest, 2));
    // Of 2^e with e from -100 to 100; other columns are none.
    const int exponent = (__float_as_int(largest) >> 23) - 127;
    exact &= largest == 0.f || (exponent >= -100 && exponent <= 100);
    const int shift = largest == 0.f ? 0 : kTop - min(max(exponent, -100), 100);
    const float scale = __int_as_float((127 + shift) << 23);
#pragma unroll
    for (int n = 0; n < Traits::kChunks * Traits::kPairs; ++n) {
      const float2 x =
          ptx::cvt_unpack<__nv_bfloat16>(q.fragments[tile][n / Traits::kPairs][n % Traits::kPairs]);
      const std::uint32_t pair = ptx::cvt_pack<__half>(x.x * scale, x.y * scale);
      const float2 back = ptx::cvt_unpack<__half>(pair);
      exact &= back.x == x.x * scale && back.y == x.y * scale;
      narrow[tile][n / Traits::kPairs][n % Traits::kPairs] = pair;
    }
    const float unit = __int_as_float((127 - shift) << 23);
#pragma unroll
    for (int i = 0; i < 2; ++i)  // lane 4 c holds column c
      q.unit[tile][i] = __shfl_sync(common::kAllLanes, unit, ((lane & 3) * 2 + i) * 4);
  }
  q.narrow = __all_sync(common::kAllLanes, exact) != 0;
  if (!q.narrow) return;
#pragma unroll
  for (int tile = 0; tile < Traits::kTiles; ++tile) {
#pragma unroll
    for (int n = 0; n < Traits::kChunks * Traits::kPairs; ++n)
      q.fragments[tile][n / Traits::kPairs][n % Traits::kPairs] =
          narrow[tile][n / Traits::kPairs][n % Traits::kPairs];
  }
}

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
#pragma unroll
      for (int pair = 0; pair < Traits::kPairs; pair += 4) {
        uint4 x{0, 0, 0, 0};
        const int at = piece_of<Traits>(chunk, lane) * 2 * Traits::kPairs + pair * 2;
        if (used) x = *reinterpret_cast<const uint4*>(items + at);
        q.fragments[tile][chunk][pair] = x.x;
        q.fragments[tile][chunk][pair + 1] = x.y;
        q.fragments[tile][chunk][pair + 2] = x.z;
        q.fragments[tile][chunk][pair + 3] = x.w;
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int held = tile * 8 + (lane & 3) * 2 + i;
      q.limit[tile][i] = held < columns ? visible_keys(r, held / group, p.batch.causal != 0) : 0;
    }
  }
  q.min_limit = visible_keys(r, 0, p.batch.causal != 0);  // the first token sees least
  q.narrow = false;
  if constexpr (Traits::kNarrows) {
    if (narrows<Traits>(p)) narrow_queries<Traits>(q, lane);
  }
}

/// A warp's keys of one part of a step.
template <class Traits>
struct StepKeys {
  uint4 items[2][2][Traits::kChunks];  // [m16 tile][row half][chunk]
};

/// Where a lane's first chunk of a part lies in a stage.
template <class Traits>
__device__ __forceinline__ int first_chunk(int part, int lane) {
  return (part * Traits::kKeys + lane / 4) * Traits::kRowBytes + piece_of<Traits>(0, lane) * 16;
}

/// `first`: this lane's first chunk.
template <class Traits>
__device__ __forceinline__ void read_keys(StepKeys<Traits>& keys, const std::uint8_t* first) {
  // As piece_of says.
  constexpr int kChunkBytes = Traits::kCodes || Traits::kPacked ? 16 : 64;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint8_t* row = first + (tile * 16 + half * 8) * Traits::kRowBytes;
#pragma unroll
      for (int chunk = 0; chunk < Traits::kChunks; ++chunk)
        keys.items[tile][half][chunk] = *reinterpret_cast<const uint4*>(row + chunk * kChunkBytes);
    }
  }
}

/// -inf for what a column does not see and for pages that do not exist.
template <class Traits, class Limits>
__device__ __forceinline__ void mask_scores(float (&d)[4], const Limits& q, int column_tile,
                                            int tile, int first, unsigned bad, int lane) {
  const int key = first + tile * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool seen = key + (i / 2) * 8 < q.limit[column_tile][i & 1] && ((bad >> tile) & 1) == 0;
    d[i] = seen ? d[i] : -INFINITY;
  }
}

/// The maximum of a column over the lanes that hold its keys.
__device__ __forceinline__ float column_max(float x) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2)
    x = fmaxf(x, __shfl_xor_sync(common::kAllLanes, x, lanes));
  return x;
}

/// Maxima of a warp's keys, the first of which is `first`, for this lane's two columns of every
/// tile; equal in all lanes of a column. `bad`: m16 tiles without a page, as bits.
template <class Traits>
__device__ __forceinline__ void reduce_keys(float (&best)[Traits::kTiles][2],
                                            const StepKeys<Traits>& keys, const Queries<Traits>& q,
                                            int first, unsigned bad, int lane) {
  const bool masked = first + Traits::kKeys > q.min_limit || bad != 0;
#pragma unroll
  for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile)
    best[column_tile][0] = best[column_tile][1] = -INFINITY;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    // Column tiles innermost: a product waits for the one before it that it adds to.
    float d[Traits::kTiles][4] = {};
#pragma unroll
    for (int chunk = 0; chunk < Traits::kChunks; ++chunk) {
      const uint4& upper = keys.items[tile][0][chunk];
      const uint4& lower = keys.items[tile][1][chunk];
#pragma unroll
      for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile) {
        const std::uint32_t(&b)[4] = q.fragments[column_tile][chunk];
        ptx::mma_m16n8k16<typename Traits::Item>(d[column_tile],
                                                 {upper.x, lower.x, upper.y, lower.y}, b[0], b[1]);
      }
#pragma unroll
      for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile) {
        const std::uint32_t(&b)[4] = q.fragments[column_tile][chunk];
        ptx::mma_m16n8k16<typename Traits::Item>(d[column_tile],
                                                 {upper.z, lower.z, upper.w, lower.w}, b[2], b[3]);
      }
    }
#pragma unroll
    for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile) {
      if (masked) mask_scores<Traits>(d[column_tile], q, column_tile, tile, first, bad, lane);
#pragma unroll
      for (int i = 0; i < 2; ++i)  // fmaxf drops NaN: a NaN token score counts as -inf
        best[column_tile][i] =
            fmaxf(best[column_tile][i], fmaxf(d[column_tile][i], d[column_tile][2 + i]));
    }
  }
#pragma unroll
  for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile) {
    best[column_tile][0] = column_max(best[column_tile][0]);
    best[column_tile][1] = column_max(best[column_tile][1]);
  }
}

}  // namespace msa::cuda::common::decode
