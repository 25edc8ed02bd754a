// SPDX-License-Identifier: MIT
// Online softmax of one warpgroup's 64 rows: two rows a thread, exponents in base 2. Scores stay
// unscaled until the exponent: p = 2^(s * c - m * c) with c = scale * log2(e).
#pragma once

#include <cstdint>

#include "cuda/common/number.cuh"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/tile/fragment.cuh"
#include "cuda/common/warp.cuh"

namespace msa::cuda::common::attend {

/// Largest of the thread's two rows over a block, NaN dropped.
template <int kItems>
__device__ __forceinline__ void row_max(const float (&s)[kItems], float (&largest)[2]) {
  float even[2] = {fmaxf(s[0], s[1]), fmaxf(s[2], s[3])};
  float odd[2] = {fmaxf(s[4], s[5]), fmaxf(s[6], s[7])};
#pragma unroll
  for (int x = 8; x < kItems; x += 8) {
    even[0] = fmaxf(even[0], fmaxf(s[x], s[x + 1]));
    even[1] = fmaxf(even[1], fmaxf(s[x + 2], s[x + 3]));
    odd[0] = fmaxf(odd[0], fmaxf(s[x + 4], s[x + 5]));
    odd[1] = fmaxf(odd[1], fmaxf(s[x + 6], s[x + 7]));
  }
  largest[0] = quad::max(fmaxf(even[0], odd[0]));
  largest[1] = quad::max(fmaxf(even[1], odd[1]));
}

/// max(floor, row) by signed comparison of the bits, three operands an instruction: half the work
/// of fmaxf. Right whenever the result is not negative; among negative numbers the order of the
/// bits is reversed.
template <int kItems>
__device__ __forceinline__ void row_max_bits(const float (&s)[kItems], const float (&floor)[2],
                                             int (&largest)[2]) {
  int even[2] = {__float_as_int(floor[0]), __float_as_int(floor[1])};
  int odd[2] = {even[0], even[1]};
#pragma unroll
  for (int x = 0; x < kItems; x += 8) {
    even[0] = ptx::vimax3(even[0], __float_as_int(s[x]), __float_as_int(s[x + 1]));
    even[1] = ptx::vimax3(even[1], __float_as_int(s[x + 2]), __float_as_int(s[x + 3]));
    odd[0] = ptx::vimax3(odd[0], __float_as_int(s[x + 4]), __float_as_int(s[x + 5]));
    odd[1] = ptx::vimax3(odd[1], __float_as_int(s[x + 6]), __float_as_int(s[x + 7]));
  }
  largest[0] = quad::max(max(even[0], odd[0]));
  largest[1] = quad::max(max(even[1], odd[1]));
}

/// How far, in powers of two, a score may stand above the maximum that weights are taken against.
/// Most blocks of a list move some row's maximum a little, and each move costs a pass over the
/// output; weights up to 2^8 lose nothing in f32, nor as bf16 or f16.
inline constexpr float kSlack = 8.0f;

/// Running maximum and sum of the thread's two rows: a maximum up to kSlack below the true one. The
/// sums are the thread's own share until finish.
struct Softmax {
  float max[2] = {-INFINITY, -INFINITY};  // unscaled
  float sum[2] = {0.0f, 0.0f};

  /// max(max, row) of the rows that take part, exact for finite scores.
  template <int kItems>
  __device__ __forceinline__ void raise(const float (&s)[kItems], const bool (&takes_part)[2],
                                        float (&raised)[2]) const {
    int bits[2];
    row_max_bits(s, max, bits);
    float largest[2] = {__int_as_float(bits[0]), __int_as_float(bits[1])};
    if (warp::any(min(bits[0], bits[1]) <
                  0)) {  // every score of a row and its maximum are negative
      row_max(s, largest);
    }
    raised[0] = takes_part[0] ? fmaxf(max[0], largest[0]) : max[0];
    raised[1] = takes_part[1] ? fmaxf(max[1], largest[1]) : max[1];
  }

  /// Moves to the raised maxima (kLazy: where they lie far enough above) and turns scores into
  /// weights; `decay` is what older weights shrink by. A row that does not take part gets weights 0
  /// (NaN where its scores are not finite: the tile is then computed again).
  template <bool kLazy, int kItems>
  __device__ __forceinline__ void weigh(float (&s)[kItems], const float (&raised)[2],
                                        const bool (&takes_part)[2], float scale_log2,
                                        float (&decay)[2]) {
    float scale[2], offset[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // The first block always moves: infinity is above any slack.
      const bool moves = !kLazy || (raised[r] - max[r]) * scale_log2 > kSlack;
      const float top = moves ? raised[r] : max[r];
      const float base = top == -INFINITY ? 0.0f : top;  // nothing seen yet: 2^-inf, not NaN
      decay[r] = ptx::ex2((max[r] - base) * scale_log2);
      scale[r] = takes_part[r] ? scale_log2 : 0.0f;
      offset[r] = takes_part[r] ? -base * scale_log2 : -INFINITY;
      max[r] = top;
      sum[r] *= decay[r];
    }
#pragma unroll
    for (int x = 0; x < kItems; x += 4) {
      s[x] = ptx::ex2(fmaf(s[x], scale[0], offset[0]));
      s[x + 1] = ptx::ex2(fmaf(s[x + 1], scale[0], offset[0]));
      s[x + 2] = ptx::ex2(fmaf(s[x + 2], scale[1], offset[1]));
      s[x + 3] = ptx::ex2(fmaf(s[x + 3], scale[1], offset[1]));
      sum[0] += s[x] + s[x + 1];
      sum[1] += s[x + 2] + s[x + 3];
    }
  }

  /// Sums of whole rows.
  __device__ __forceinline__ void finish() {
    sum[0] = quad::sum(sum[0]);
    sum[1] = quad::sum(sum[1]);
  }

  /// Natural log of the sum of exponentials of row r's scaled scores.
  __device__ __forceinline__ float lse(int r, float scale_log2) const {
    return sum[r] == 0.0f ? -INFINITY : (max[r] * scale_log2 + ptx::lg2(sum[r])) * kLn2;
  }
};

}  // namespace msa::cuda::common::attend
