// SPDX-License-Identifier: MIT
// Scores of 64 rows by a filter's codes alone: products are exact in s32, and their maximum over
// the keys that share a scale is multiplied by it and by the row's own.
#pragma once

#include "cuda/sm90/select/codes.cuh"

namespace msa::cuda::sm90::select {

/// A fragments of this thread's two rows in codes, and what products of each are multiplied by: NaN
/// where the row is not finite. As docs/numerics.md says, division by division.
template <class Traits>
__device__ __forceinline__ void load_exact_codes(std::uint32_t (&a)[4 * Traits::kSteps],
                                                 float (&scale)[2], const Params& p,
                                                 const Work& work, const ConsumerRows& rows) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float x[kRowItems<Traits>];
    load_row<Traits>(x, p, work, rows.row[i]);
    float largest = 0.0f;
#pragma unroll
    for (float item : x) largest = ptx::max_nan(largest, fabsf(item));
    largest = quad::max_nan(largest);
    const bool finite = largest < INFINITY;
    const float own = __fdiv_rn(largest, 127.0f);
    const float divisor = finite && own > 0.0f ? own : INFINITY;
    scale[i] = finite ? __fmul_rn(own, p.rotated != 0 ? 1.0f / Traits::kConfig.dim : 1.0f) : NAN;
#pragma unroll
    for (int n = 0; n < kRowItems<Traits> / 4; ++n) {
      float codes[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float ratio = finite ? __fdiv_rn(x[4 * n + c], divisor) : 0.0f;
        codes[c] = static_cast<float>(min(max(__float2int_rn(ratio), -127), 127));
      }
      a[n / 2 * 4 + n % 2 * 2 + i] = common::pack_codes(codes);
    }
  }
}

/// Largest product of a thread's row over `kCount` column groups of 8, from `begin` on.
template <int kCount>
__device__ __forceinline__ std::int32_t largest_product(const std::int32_t (&d)[64], int begin,
                                                        int row) {
  const auto at = [&](int g, int i) { return d[4 * (begin + g) + 2 * row + i]; };
  std::int32_t even = max(at(0, 0), at(0, 1));
  std::int32_t odd = max(at(1, 0), at(1, 1));
#pragma unroll
  for (int g = 2; g < kCount; g += 2) {
    even = ptx::vimax3(even, at(g, 0), at(g, 1));
    odd = ptx::vimax3(odd, at(g + 1, 0), at(g + 1, 1));
  }
  return max(even, odd);
}

/// -inf where no key is seen, or where a scale is no number.
__device__ __forceinline__ float score_of(std::int32_t product, float both) {
  const float score = __fmul_rn(both, static_cast<float>(product));
  return product == kNoProduct ? kMinusInf : fmaxf(score, kMinusInf);
}

/// What a warpgroup's rows make of key tiles: maxima of blocks.
template <class Traits>
class FastRows {
 public:
  __device__ __forceinline__ FastRows(const Params& p, const Work& work)
      : rows_(locate_rows<Traits>(p, work)), writer_(p, work, rows_) {
    load_exact_codes<Traits>(a_, scale_, p, work, rows_);
  }

  /// As ScoredRows::take. What a quad has in common is joined while the next products are made.
  __device__ __forceinline__ void take(typename Traits::Shared& shared,
                                       RingPosition<Traits::kStages> at, int tile, int shift,
                                       bool releases) {
    const std::uint32_t bad_boxes = of_stage(shared.bad_boxes[at.stage], releases);
    const int4(&scales)[2] = shared.scales[at.stage];
    const bool one_page = shift == kGroupShift + 3;
    int4 front{}, back{};
    if (one_page) {
      front.x = of_stage(scales[0].x, releases);
    } else {
      front = of_stage(scales[0], releases);
      back = of_stage(scales[1], releases);
    }
    std::int32_t d[64];
    start_products<Traits>(d, a_, shared.keys[at.stage]);
    write(tile - 1);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(d);
    if (releases) shared.ring.release(at);
    if ((tile + 1) * Traits::kKeys > rows_.visible_from || bad_boxes != 0)
      mask_products<Traits>(d, rows_, tile, bad_boxes, shift);
    if (one_page) {
      hold_page(d, __int_as_float(front.x));
    } else {
      hold_pages(d, front, back, shift);
    }
    holds_ = true;
  }

  __device__ __forceinline__ void finish(int end) {
    write(end - 1);
    writer_.finish(end);
  }

 private:
  static constexpr int kGroupShift = 4;  // of the smallest boxes: eight a key tile
  static constexpr int kBlockGroups = 16 / Traits::kBlocksPerTile;  // of 8 columns

  /// Of a key tile in one page.
  __device__ __forceinline__ void hold_page(const std::int32_t (&d)[64], float scale) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float both = __fmul_rn(scale_[row], scale);
#pragma unroll
      for (int b = 0; b < Traits::kBlocksPerTile; ++b)
        held_[b][row] = score_of(largest_product<kBlockGroups>(d, b * kBlockGroups, row), both);
    }
  }

  /// Of one that has several scales: eight, four or two.
  __device__ __forceinline__ void hold_pages(const std::int32_t (&d)[64], const int4& front,
                                             const int4& back, int shift) {
    const int scales[8] = {front.x, front.y, front.z, front.w, back.x, back.y, back.z, back.w};
    const int skip = shift - kGroupShift;  // two or four groups share a scale
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
      for (int b = 0; b < Traits::kBlocksPerTile; ++b) held_[b][row] = kMinusInf;
#pragma unroll
      for (int group = 0; group < 8; ++group) {
        const int mine = skip == 0   ? scales[group]
                         : skip == 1 ? scales[group / 2]
                                     : scales[group / 4];
        const float both = __fmul_rn(scale_[row], __int_as_float(mine));
        float& held = held_[group * Traits::kBlocksPerTile / 8][row];
        held = fmaxf(held, score_of(largest_product<2>(d, 2 * group, row), both));
      }
    }
  }

  /// Of the tile that was taken last, where there was one.
  __device__ __forceinline__ void write(int tile) {
    float maxima[Traits::kBlocksPerTile];
#pragma unroll
    for (int b = 0; b < Traits::kBlocksPerTile; ++b) {
      const bool odd = (threadIdx.x & 1) != 0;
      const float other = __shfl_xor_sync(kAllLanes, odd ? held_[b][0] : held_[b][1], 1);
      const float mine = fmaxf(odd ? held_[b][1] : held_[b][0], other);
      maxima[b] = fmaxf(mine, __shfl_xor_sync(kAllLanes, mine, 2));
    }
    writer_.put(maxima, tile, holds_);
  }

  const ConsumerRows rows_;
  ScoreWriter<Traits> writer_;
  std::uint32_t a_[4 * Traits::kSteps];
  float scale_[2];
  float held_[Traits::kBlocksPerTile][2];  // maxima of this thread's columns
  bool holds_ = false;
};

}  // namespace msa::cuda::sm90::select
