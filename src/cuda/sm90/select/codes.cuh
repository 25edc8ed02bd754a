// SPDX-License-Identifier: MIT
// Products of 64 rows' codes with a filter's codes of tiles of 128 keys, exact in s32: the largest
// of each part of 32 keys. Bounds come later (candidates.cu): where a block lies in one page, its
// largest product bounds its score as well as all of them.
#pragma once

#include "cuda/common/rotate.cuh"
#include "cuda/sm90/select/products.h"
#include "cuda/sm90/select/scores.cuh"

namespace msa::cuda::sm90::select {

/// Of a row, whose neighbours a quad holds four by four: 16 lie between a lane's fours.
template <int kItems>
__device__ __forceinline__ void rotate_row(float (&x)[kItems]) {
  static_assert(kItems == 32, "a quarter of 128 items");
  common::rotate_held<1>(x);
  common::rotate_held<2>(x);
  common::rotate_lanes(x, 1);
  common::rotate_lanes(x, 2);
  common::rotate_held<4>(x);
  common::rotate_held<8>(x);
  common::rotate_held<16>(x);
}

/// Items of a row that a thread holds.
template <class Traits>
constexpr int kRowItems = Traits::kConfig.dim / 4;

/// Of each k32 step four neighbours from this thread's column on and from 16 behind it, rotated
/// where the filter is. Rows that are not there repeat the last one.
template <class Traits>
__device__ __forceinline__ void load_row(float (&x)[kRowItems<Traits>], const Params& p,
                                         const Work& work, int row) {
  constexpr int kWords = kRowItems<Traits> / 2;  // of two items
  const int r = min(row, work.valid_rows - 1);
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
#pragma unroll
  for (int n = 0; n < kWords; ++n) {
    const float2 pair = ptx::cvt_unpack<typename Traits::Item>(items[n]);
    x[2 * n] = pair.x;
    x[2 * n + 1] = pair.y;
  }
  if (p.rotated != 0) rotate_row(x);
}

/// A fragments of this thread's two rows in codes.
template <class Traits>
__device__ __forceinline__ void load_codes(std::uint32_t (&a)[4 * Traits::kSteps], const Params& p,
                                           const Work& work, const ConsumerRows& rows) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float x[kRowItems<Traits>];
    load_row<Traits>(x, p, work, rows.row[i]);
    float largest = 0.0f;
#pragma unroll
    for (float item : x) largest = ptx::max_nan(largest, fabsf(item));
    const QueryUnit unit = common::query_unit(quad::max_nan(largest));
#pragma unroll
    for (int n = 0; n < kRowItems<Traits> / 4; ++n) {
      float codes[4];
#pragma unroll
      for (int c = 0; c < 4; ++c)
        codes[c] = unit.known ? common::code_of(unit, x[4 * n + c] * unit.divide) : 0.0f;
      a[n / 2 * 4 + n % 2 * 2 + i] = common::pack_codes(codes);
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

/// The same with half of a key tile.
template <class Traits>
__device__ __forceinline__ void start_half(std::int32_t (&d)[32], const std::uint32_t* a,
                                           const std::uint8_t* keys, int half) {
  const std::uint64_t from = descriptor_k_major(keys + half * 64 * kPanelRowBytes);
#pragma unroll
  for (int s = 0; s < Traits::kSteps; ++s)
    ptx::wgmma_m64n64k32_s8_rs(d, a + 4 * s, from + s * kDescriptorStepK, s != 0);
  ptx::wgmma_commit_group();
}

/// kNoProduct where a row does not see a key, or where the key's page is not there. `first`: column
/// of the tile that d begins with.
template <class Traits, int kProducts>
__device__ __forceinline__ void mask_products(std::int32_t (&d)[kProducts],
                                              const ConsumerRows& rows, int tile,
                                              std::uint32_t bad_boxes, int shift, int first = 0) {
#pragma unroll
  for (int x = 0; x < kProducts; ++x) {
    const int column = first + (x >> 2) * 8 + fragment_column(threadIdx.x % 128) + (x & 1);
    const bool unseen = tile * Traits::kKeys + column >= rows.visible[x >> 1 & 1];
    if (unseen || (bad_boxes >> (column >> shift) & 1) != 0) d[x] = kNoProduct;
  }
}

/// Largest product of part `kPart` of a thread's row.
template <int kPart>
__device__ __forceinline__ std::int32_t part_maximum(const std::int32_t (&d)[32], int row) {
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

  __device__ __forceinline__ void take(const std::int32_t (&d)[32], int half) {
#pragma unroll
    for (int row = 0; row < 2; ++row)
      packed[row][half] = pack_products(part_maximum<0>(d, row), part_maximum<1>(d, row));
  }
};

/// Largest products of one row, of parts 0 and 1 and of parts 2 and 3.
struct RowMaxima {
  std::uint32_t packed[2];
};

/// First half of joining a quad: even lanes go on with row 0, odd ones with row 1.
__device__ __forceinline__ RowMaxima join_rows(const PartMaxima& maxima) {
  const auto& packed = maxima.packed;
  const bool odd = (threadIdx.x & 1) != 0;
  RowMaxima mine;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::uint32_t other = odd ? packed[0][half] : packed[1][half];
    mine.packed[half] =
        __vmaxs2(odd ? packed[1][half] : packed[0][half], __shfl_xor_sync(kAllLanes, other, 1));
  }
  return mine;
}

/// Second half: the word of one of two key tiles, the first one's in the quad's lower lanes.
__device__ __forceinline__ std::uint32_t join_tiles(const RowMaxima& first,
                                                    const RowMaxima& second) {
  const bool upper = (threadIdx.x & 2) != 0;
  std::uint32_t mine[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::uint32_t other = upper ? first.packed[half] : second.packed[half];
    mine[half] = __vmaxs2(upper ? second.packed[half] : first.packed[half],
                          __shfl_xor_sync(kAllLanes, other, 2));
  }
  std::uint32_t most = __vmaxs2(mine[0], mine[1]);
  most = __vmaxs2(most, __byte_perm(most, most, 0x1032));
  // As unsigned numbers no half is larger than the one that it is taken from: nothing is borrowed.
  constexpr std::uint32_t kBias = 0x80008000;
  constexpr std::uint32_t kMost = ((kMostSteps + 1) * kUnitsPerStep - 1) * 0x10001u;
  static_assert(kUnitsPerStep == 8, "a shift by three");
  std::uint32_t below[2];
#pragma unroll
  for (int half = 0; half < 2; ++half)
    below[half] = __vminu2((most ^ kBias) - (mine[half] ^ kBias), kMost);
  const std::uint32_t steps = (below[0] >> 3 & 0x0f0f0f0fu) | (below[1] << 1 & 0xf0f0f0f0u);
  return __byte_perm(steps, most, 0x7620);
}

/// What a warpgroup's rows make of key tiles: the largest products of their parts. Of four tiles, a
/// quad's lower lanes keep and write the words of the first two.
template <class Traits>
class CodedRows {
 public:
  __device__ __forceinline__ CodedRows(const Params& p, const Work& work)
      : rows_(locate_rows<Traits>(p, work)) {
    load_codes<Traits>(a_, p, work, rows_);
    const int i = threadIdx.x & 1;
    const std::int64_t row =
        (static_cast<std::int64_t>(work.slot) * p.groups + work.group) * Traits::kRows +
        (i != 0 ? rows_.row[1] : rows_.row[0]);
    valid_ = i != 0 ? rows_.valid[1] : rows_.valid[0];
    to_ = reinterpret_cast<uint2*>(p.products + row * p.stride_products) + (threadIdx.x >> 1 & 1);
  }

  /// As ScoredRows::take. What a quad has in common is joined while the next products are made.
  __device__ __forceinline__ void take(typename Traits::Shared& shared,
                                       RingPosition<Traits::kStages> at, int tile, int shift,
                                       bool releases) {
    switch (tile & 3) {
      case 0:
        return take<0>(shared, at, tile, shift, releases);
      case 1:
        return take<1>(shared, at, tile, shift, releases);
      case 2:
        return take<2>(shared, at, tile, shift, releases);
      default:
        return take<3>(shared, at, tile, shift, releases);
    }
  }

  /// The last, perhaps unfilled group of four; rows have room for it.
  __device__ __forceinline__ void finish(int end) {
    const int last = (end - 1) & 3;
#pragma unroll
    for (int turn = 0; turn < 4; ++turn) {
      if (turn == last) joined_[turn] = join_rows(maxima_);
    }
    if (last != 3) word_ = join_tiles(joined_[0], joined_[2]);
    flush((end - 1) >> 2);
  }

 private:
  template <int kTurn>
  __device__ __forceinline__ void take(typename Traits::Shared& shared,
                                       RingPosition<Traits::kStages> at, int tile, int shift,
                                       bool releases) {
    const std::uint32_t bad_boxes = of_stage(shared.bad_boxes[at.stage], releases);
    std::int32_t front[32], back[32];
    ptx::wgmma_fence();
    start_half<Traits>(front, a_, shared.keys[at.stage], 0);
    start_half<Traits>(back, a_, shared.keys[at.stage], 1);
    // The key tile before, while products are under way.
    joined_[(kTurn + 3) % 4] = join_rows(maxima_);
    if constexpr (kTurn == 3) word_ = join_tiles(joined_[0], joined_[2]);
    if constexpr (kTurn == 0) flush((tile >> 2) - 1);
    const bool masked = (tile + 1) * Traits::kKeys > rows_.visible_from || bad_boxes != 0;
    ptx::wgmma_wait_group<1>();
    ptx::keep_accumulator(front);
    if (masked) mask_products<Traits>(front, rows_, tile, bad_boxes, shift);
    maxima_.take(front, 0);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(back);
    if (releases) shared.ring.release(at);
    if (masked) mask_products<Traits>(back, rows_, tile, bad_boxes, shift, 64);
    maxima_.take(back, 1);
    writes_ = valid_;
  }

  /// Four words of a row, two of a lane.
  __device__ __forceinline__ void flush(int group) {
    const std::uint32_t word = join_tiles(joined_[1], joined_[3]);
    if (writes_) to_[2 * group] = make_uint2(word_, word);
  }

  const ConsumerRows rows_;
  std::uint32_t a_[4 * Traits::kSteps];
  uint2* to_;
  bool valid_;
  bool writes_ = false;     // valid, and there are products
  PartMaxima maxima_{};     // of the tile that was taken last
  RowMaxima joined_[4]{};   // of a group's tiles
  std::uint32_t word_ = 0;  // of a group's first or third tile
};

}  // namespace msa::cuda::sm90::select
