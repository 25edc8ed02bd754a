// SPDX-License-Identifier: MIT
// Products of 64 rows' codes with a filter's codes of tiles of 128 keys, exact in s32: the largest
// of each part of 32 keys. Bounds come later (candidates.cu): where a block lies in one page, its
// largest product bounds its score as well as all of them.
#pragma once

#include "cuda/sm90/select/products.h"
#include "cuda/sm90/select/scores.cuh"

namespace msa::cuda::sm90::select {

/// A fragments of this thread's two rows in codes: of each k32 step four neighbours from its column
/// on and from 16 behind it.
template <class Traits>
__device__ __forceinline__ void load_codes(std::uint32_t (&a)[4 * Traits::kSteps], const Params& p,
                                           const Work& work, const ConsumerRows& rows) {
  using Item = typename Traits::Item;
  constexpr int kWords = Traits::kSteps * 4;  // of two items, of a row
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = min(rows.row[i], work.valid_rows - 1);
    const std::int64_t token = work.rows.q_begin + r / p.heads;
    const std::int64_t head = work.group * p.heads + r % p.heads;
    const std::uint16_t* q =
        common::row_of<std::uint16_t>(p.queries, token, head) + threadIdx.x % 4 * 4;
    std::uint32_t items[kWords];
    if (p.queries_paired) {
#pragma unroll
      for (int n = 0; n < kWords; ++n)
        items[n] = __ldg(reinterpret_cast<const std::uint32_t*>(q + n / 2 * 16 + n % 2 * 2));
    } else {
#pragma unroll
      for (int n = 0; n < kWords; ++n) {
        const std::uint16_t* pair = q + n / 2 * 16 + n % 2 * 2;
        items[n] = __ldg(pair) | static_cast<std::uint32_t>(__ldg(pair + 1)) << 16;
      }
    }
    float largest = 0.0f;
#pragma unroll
    for (int n = 0; n < kWords; ++n) {
      const float2 x = ptx::cvt_unpack<Item>(items[n]);
      largest = ptx::max_nan(largest, ptx::max_nan(fabsf(x.x), fabsf(x.y)));
    }
    const QueryUnit unit = query_unit(quad::max_nan(largest));
#pragma unroll
    for (int n = 0; n < kWords / 2; ++n) {
      const float2 low = ptx::cvt_unpack<Item>(items[2 * n]);
      const float2 high = ptx::cvt_unpack<Item>(items[2 * n + 1]);
      const float divided[4] = {low.x * unit.divide, low.y * unit.divide, high.x * unit.divide,
                                high.y * unit.divide};
      float codes[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) codes[c] = unit.known ? code_of(unit, divided[c]) : 0.0f;
      a[n / 2 * 4 + n % 2 * 2 + i] = pack_codes(codes);
    }
  }
}

/// Starts the products of 64 rows with one key tile that has arrived.
template <class Traits>
__device__ __forceinline__ void start_products(std::int32_t (&d)[64], const std::uint32_t* a,
                                               const std::uint8_t* keys) {
  ptx::wgmma_fence();
#pragma unroll
  for (int s = 0; s < Traits::kSteps; ++s) {
    ptx::wgmma_m64n128k32_s8_rs(d, a + 4 * s, descriptor_k_major(keys) + s * kDescriptorStepK,
                                s != 0);
  }
  ptx::wgmma_commit_group();
}

/// Largest product of part `kPart` of a thread's row.
template <int kPart>
__device__ __forceinline__ std::int32_t part_maximum(const std::int32_t (&d)[64], int row) {
  const auto at = [&](int n) { return d[16 * kPart + n / 2 * 4 + 2 * row + n % 2]; };
  const std::int32_t front = ptx::vimax3(at(0), at(1), at(2));
  const std::int32_t back = ptx::vimax3(at(3), at(4), at(5));
  return ptx::vimax3(max(at(6), at(7)), front, back);
}

/// Two products in units, cut off, as 16-bit numbers: the first in the low half.
__device__ __forceinline__ std::uint32_t pack_products(std::int32_t low, std::int32_t high) {
  constexpr int kShift = 16 - 6;
  static_assert(kProductUnit == 1 << 6, "what is left of 32 bits");
  return __byte_perm(static_cast<std::uint32_t>(low) << kShift,
                     static_cast<std::uint32_t>(high) << kShift, 0x7632);
}

/// Largest products of a thread's two rows, of parts 0 and 1 and of parts 2 and 3.
struct PartMaxima {
  std::uint32_t packed[2][2];

  __device__ __forceinline__ void take(const std::int32_t (&d)[64]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      packed[row][0] = pack_products(part_maximum<0>(d, row), part_maximum<1>(d, row));
      packed[row][1] = pack_products(part_maximum<2>(d, row), part_maximum<3>(d, row));
    }
  }
};

/// The word of one key tile: row 0's in even lanes, row 1's in odd ones.
__device__ __forceinline__ std::uint32_t part_products(const PartMaxima& maxima) {
  const auto& packed = maxima.packed;
  const bool odd = (threadIdx.x & 1) != 0;
  std::uint32_t mine[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::uint32_t other = odd ? packed[0][half] : packed[1][half];
    mine[half] =
        __vmaxs2(odd ? packed[1][half] : packed[0][half], __shfl_xor_sync(kAllLanes, other, 1));
    mine[half] = __vmaxs2(mine[half], __shfl_xor_sync(kAllLanes, mine[half], 2));
  }
  std::uint32_t most = __vmaxs2(mine[0], mine[1]);
  most = __vmaxs2(most, __byte_perm(most, most, 0x1032));
  // As unsigned numbers no half is larger than the one that it is taken from: nothing is borrowed.
  constexpr std::uint32_t kBias = 0x80008000;
  constexpr std::uint32_t kMost = kMostSteps * 0x10001u;
  static_assert(kUnitsPerStep == 8, "a shift by three");
  std::uint32_t steps[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::uint32_t below = (most ^ kBias) - (mine[half] ^ kBias);
    steps[half] = __vminu2(below >> 3 & 0x1fff1fffu, kMost);
  }
  return __byte_perm(steps[0] | steps[1] << 4, most, 0x7620);
}

/// What a warpgroup's rows make of key tiles: the largest products of their parts.
template <class Traits>
class CodedRows {
 public:
  __device__ __forceinline__ CodedRows(const Params& p, const Work& work)
      : rows_(locate_rows<Traits>(p, work)) {
    load_codes<Traits>(a_, p, work, rows_);
    const int i = threadIdx.x & 1;
    writes_ = (i != 0 ? rows_.valid[1] : rows_.valid[0]) && (threadIdx.x & 2) == 0;
    const std::int64_t row =
        (static_cast<std::int64_t>(work.slot) * p.groups + work.group) * Traits::kRows +
        (i != 0 ? rows_.row[1] : rows_.row[0]);
    to_ = reinterpret_cast<uint4*>(p.products + row * p.stride_products);
  }

  /// As ScoredRows::take. What a quad has in common is joined while the next products are made.
  __device__ __forceinline__ void take(typename Traits::Shared& shared,
                                       RingPosition<Traits::kStages> at, int tile, int shift,
                                       bool releases) {
    const std::uint32_t bad_boxes = shared.bad_boxes[at.stage];
    std::int32_t d[64];
    start_products<Traits>(d, a_, shared.keys[at.stage]);
    put(tile - 1);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(d);
    if (releases) shared.ring.release(at);
    if ((tile + 1) * Traits::kKeys > rows_.visible_from || bad_boxes != 0) {
#pragma unroll
      for (int x = 0; x < 64; ++x) {
        const int column = (x >> 2) * 8 + fragment_column(threadIdx.x % 128) + (x & 1);
        const bool unseen = tile * Traits::kKeys + column >= rows_.visible[x >> 1 & 1];
        if (unseen || (bad_boxes >> (column >> shift) & 1) != 0) d[x] = kNoProduct;
      }
    }
    maxima_.take(d);
    taken_ = true;
  }

  /// The last, perhaps unfilled group of four; rows have room for it.
  __device__ __forceinline__ void finish(int end) {
    put(end - 1);
    if (end % 4 != 0) flush(end);
  }

 private:
  /// The key tile that was taken last, if there is one. Without a branch: products are under way.
  __device__ __forceinline__ void put(int tile) {
    const std::uint32_t word = part_products(maxima_);
    const int turn = tile & 3;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      if (s == turn) pending_[s] = word;
    }
    if (turn == 3 && taken_) flush(tile);
  }

  __device__ __forceinline__ void flush(int tile) {
    if (writes_) to_[tile / 4] = make_uint4(pending_[0], pending_[1], pending_[2], pending_[3]);
  }

  const ConsumerRows rows_;
  std::uint32_t a_[4 * Traits::kSteps];
  uint4* to_;
  bool writes_;
  PartMaxima maxima_{};
  bool taken_ = false;
  std::uint32_t pending_[4] = {};
};

}  // namespace msa::cuda::sm90::select
