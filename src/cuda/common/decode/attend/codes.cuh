// SPDX-License-Identifier: MIT
// A consumer warp's work on keys and values in e4m3: they come from the ring as bytes and are
// widened, to a type that holds every code exactly, in front of the product. Scales of keys
// multiply the scores of their columns, those of values the weights.
//
// The contraction of Q K^T may come in any order: a lane takes 32 neighbours of a key, four a k16
// step, and q is loaded so (state.cuh); packed codes come in the same order, so that both give the
// same sums. A lane's four bytes of an ldmatrix of values are two columns of two keys: a product's
// columns are every second one of 16, and a lane ends with four neighbours.
#pragma once

#include "cuda/common/decode/attend/state.cuh"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/ptx/matrix.cuh"
#include "cuda/common/scales.cuh"
#include "cuda/common/tile/fragment.cuh"
#include "cuda/common/tile/swizzle.cuh"

namespace msa::cuda::common::decode {

/// S[heads][keys] of this warp's keys, in codes. Its n8 tiles take turns.
template <class Traits>
__device__ __forceinline__ void multiply_key_codes(float (&scores)[Traits::kKeyTiles][4],
                                                   const WarpState<Traits>& s,
                                                   const std::uint8_t* keys, int warp, int lane) {
  using Item = typename Traits::Factor;
#pragma unroll
  for (int i = 0; i < Traits::kKeyTiles * 4; ++i) scores[i / 4][i % 4] = 0.f;
#pragma unroll
  for (int four = 0; four < Traits::kDim / 64; ++four) {  // k16 steps a load
    std::uint32_t codes[Traits::kKeyTiles][4];
#pragma unroll
    for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
      const int row = warp * Traits::kKeys + tile * 8 + (lane >> 2);
      const uint4 chunk = *reinterpret_cast<const uint4*>(
          keys + swizzled_chunk(row, (lane & 3) * (Traits::kDim / 64) + four));
      codes[tile][0] = chunk.x;
      codes[tile][1] = chunk.y;
      codes[tile][2] = chunk.z;
      codes[tile][3] = chunk.w;
    }
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
        ptx::mma_m16n8k16<Item>(
            scores[tile], s.q[four * 4 + step],
            ptx::widen_e4m3x2<Item>(static_cast<std::uint16_t>(codes[tile][step])),
            ptx::widen_e4m3x2<Item>(static_cast<std::uint16_t>(codes[tile][step] >> 16)));
      }
    }
  }
}

/// Multiplies by what the rows' queries were divided by (Narrow).
template <class Traits>
__device__ __forceinline__ void scale_rows(float (&x)[Traits::kKeyTiles][4], std::uint32_t units) {
  const float of_row[2] = {__uint_as_float((units & 0xff) << 23),
                           __uint_as_float((units >> 8) << 23)};
#pragma unroll
  for (int i = 0; i < Traits::kKeyTiles * 4; ++i) x[i / 4][i % 4] *= of_row[i / 2 % 2];
}

/// Multiplies each column by the scale of its key; `scales` are those of this warp's keys.
template <class Traits>
__device__ __forceinline__ void scale_columns(float (&x)[Traits::kKeyTiles][4], const float* scales,
                                              int lane) {
#pragma unroll
  for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
    const float2 pair = *reinterpret_cast<const float2*>(scales + tile * 8 + fragment_column(lane));
    x[tile][0] *= pair.x;
    x[tile][1] *= pair.y;
    x[tile][2] *= pair.x;
    x[tile][3] *= pair.y;
  }
}

/// Scores of those of this warp's keys that are wanted(key), from the values themselves, which are
/// value_of(key, dim). Slow and short.
template <class Traits, class Wanted, class ValueOf>
__device__ __forceinline__ void score_singly(float (&scores)[Traits::kKeyTiles][4],
                                             const AttendParams& p, const Item& item, int lane,
                                             const Wanted& wanted, const ValueOf& value_of) {
#pragma unroll 1
  for (int at = 0; at < Traits::kKeyTiles * 4; ++at) {
    asm volatile("" : "+r"(lane));
    const int key = at / 4 * 8 + fragment_column(lane) + (at & 1);
    const int member = item.tile * 16 + lane / 4 + (at & 2) * 4;
    if (!wanted(key) || member >= p.group) continue;
    const auto* q =
        common::row_of<typename Traits::Item>(p.q, item.row, item.head * p.group + member);
    float score = 0.f;
#pragma unroll 1
    for (int d = 0; d < Traits::kDim; ++d)
      score = fmaf(common::to_float(q[d]), value_of(key, d), score);
#pragma unroll
    for (int i = 0; i < Traits::kKeyTiles * 4; ++i) {
      if (i == at) scores[i / 4][i & 3] = score;
    }
  }
}

/// Of keys whose values may overflow or are NaN, or of all.
template <class Traits>
__device__ __forceinline__ void score_odd_keys(float (&scores)[Traits::kKeyTiles][4],
                                               const AttendParams& p, const Item& item,
                                               const std::uint8_t* keys, const float* scales,
                                               int warp, int lane, bool all) {
  score_singly<Traits>(
      scores, p, item, lane, [&](int key) { return all || common::is_odd_scale(scales[key]); },
      [&](int key, int d) {
        const int row = warp * Traits::kKeys + key;
        return ptx::e4m3_to_float(keys[swizzled_chunk(row, d >> 4) + (d & 15)]) * scales[key];
      });
}

/// Makes NaN of codes whose values are infinite: folded into a weight below 1, a scale would leave
/// them finite.
template <class Traits>
__device__ __forceinline__ void spoil_odd_values(std::uint8_t* values, const float* scales,
                                                 int warp, int lane) {
  static_assert(Traits::kDim == 128, "a lane takes four of a row's codes");
  constexpr std::uint8_t kNanCode = 0x7f;
#pragma unroll 1
  for (int key = 0; key < Traits::kKeys; ++key) {
    const float scale = scales[key];
    if (!common::is_odd_scale(scale)) continue;
    std::uint8_t* at =
        values + swizzled_chunk(warp * Traits::kKeys + key, lane >> 2) + (lane & 3) * 4;
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
      if (!(fabsf(ptx::e4m3_to_float(at[i]) * scale) < INFINITY)) at[i] = kNanCode;
    }
  }
  ptx::fence_proxy_async_shared();  // the copy engine writes here next
  __syncwarp();
}

/// Online softmax over this warp's keys: scores become weights, the maximum and the sum move on.
/// `decay`: what the output so far shrinks by.
template <class Traits>
__device__ __forceinline__ void weigh(WarpState<Traits>& s, float (&scores)[Traits::kKeyTiles][4],
                                      float scale_log2, float (&decay)[2]) {
  float shift[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float best = s.best[half];
#pragma unroll
    for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
      best = fmaxf(best, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
    }
    best = quad::max(best);
    if (best > s.best[half]) best = common::whole_power(best, scale_log2);
    shift[half] = best == -INFINITY ? 0.f : best;  // nothing but -inf so far: keep exp2(-inf) = 0
    decay[half] =
        s.best[half] == -INFINITY ? 0.f : ptx::ex2((s.best[half] - shift[half]) * scale_log2);
    s.best[half] = best;
    s.sum[half] *= decay[half];
  }
#pragma unroll
  for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      scores[tile][j] = ptx::ex2((scores[tile][j] - shift[j / 2]) * scale_log2);
      s.sum[j / 2] += scores[tile][j];
    }
  }
}

/// The power of two at or below a bound of magnitudes, kept where it and its reciprocal are normal.
__device__ __forceinline__ float unit_of(float bound) {
  constexpr int kExponent = 0x7f800000;
  constexpr int kSmallest = 1 << 23, kLargest = 253 << 23;
  return __int_as_float(min(max(__float_as_int(bound) & kExponent, kSmallest), kLargest));
}
/// Its reciprocal, exactly.
__device__ __forceinline__ float per_unit(float unit) {
  constexpr int kOneSquared = 254 << 23;
  return __int_as_float(kOneSquared - __float_as_int(unit));
}

/// Weights, times the scales of their values, become P (A fragments), and the output shrinks. Both
/// are counted in units, so that the largest weight of a row so far lies between 1 and 2.
template <class Traits>
__device__ __forceinline__ void pack_weights(std::uint32_t (&probabilities)[Traits::kSteps][4],
                                             WarpState<Traits>& s,
                                             const float (&weights)[Traits::kKeyTiles][4],
                                             const float (&decay)[2]) {
  using Item = typename Traits::Factor;
  float shrink[2], inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = 0.f;
#pragma unroll
    for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
      largest =
          fmaxf(largest, fmaxf(fabsf(weights[tile][2 * half]), fabsf(weights[tile][2 * half + 1])));
    }
    const float before = s.unit[half] * decay[half];
    s.unit[half] = unit_of(fmaxf(before, quad::max(largest)));
    inverse[half] = per_unit(s.unit[half]);
    shrink[half] = before * inverse[half];
  }
#pragma unroll
  for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float(&two)[4] = weights[tile];
      probabilities[tile / 2][(tile & 1) * 2 + half] =
          ptx::cvt_pack<Item>(two[2 * half] * inverse[half], two[2 * half + 1] * inverse[half]);
    }
  }
  if (!warp::any(shrink[0] != 1.f || shrink[1] != 1.f)) return;  // as behind most blocks
#pragma unroll
  for (int i = 0; i < Traits::kDimTiles * 4; ++i) s.out[i / 4][i % 4] *= shrink[i / 2 % 2];
}

/// Adds P V. Of 16 columns of V the even ones are one product, the odd ones the next.
template <class Traits>
__device__ __forceinline__ void multiply_value_codes(
    WarpState<Traits>& s, const std::uint32_t (&probabilities)[Traits::kSteps][4],
    const std::uint8_t* values, int warp, int lane) {
  using Item = typename Traits::Factor;
#pragma unroll
  for (int step = 0; step < Traits::kSteps; ++step) {
    const int row = warp * Traits::kKeys + step * 16 + (lane & 15);
#pragma unroll
    for (int pair = 0; pair < Traits::kDim / 32; ++pair) {
      std::uint32_t codes[4];
      ptx::ldmatrix_x4_trans(codes, values + swizzled_chunk(row, pair * 2 + (lane >> 4)));
#pragma unroll
      for (int chunk = 0; chunk < 2; ++chunk) {
        // Bytes: (key, even column), (key, odd column), (key + 1, even), (key + 1, odd).
        const std::uint32_t low = __byte_perm(codes[2 * chunk], 0, 0x3120);
        const std::uint32_t high = __byte_perm(codes[2 * chunk + 1], 0, 0x3120);
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          ptx::mma_m16n8k16<Item>(
              s.out[pair * 4 + chunk * 2 + odd], probabilities[step],
              ptx::widen_e4m3x2<Item>(static_cast<std::uint16_t>(low >> (16 * odd))),
              ptx::widen_e4m3x2<Item>(static_cast<std::uint16_t>(high >> (16 * odd))));
        }
      }
    }
  }
}

}  // namespace msa::cuda::common::decode
