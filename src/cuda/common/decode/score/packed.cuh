// SPDX-License-Identifier: MIT
// A consumer warp's scores of keys in four bits: a table in shared memory makes Items of codes and
// their groups' scales in registers (common/four_bits.cuh), and the scale of all keys multiplies
// scores. Where values are rounded to e4m3 the table holds codes of those, which are widened as
// index keys in e4m3 are (codes.cuh). A lane holds 32 neighbours of a key, two groups: 4 of each
// lane make a k16 step, as those of e4m3 do, so that codes of the same values give the same sums.
#pragma once

#include <type_traits>

#include "cuda/common/decode/score/keys.cuh"
#include "cuda/common/four_bits.cuh"

namespace msa::cuda::common::decode {

/// Scales of the two groups that a lane holds of a key, as codes: [m16 tile][row half].
struct KeyGroups {
  std::uint32_t of[2][2];
};

/// Where the scales of a lane's groups lie among those of a step, in bytes; `first`: the first key
/// of the part.
__device__ __forceinline__ int first_groups(int first, int lane) {
  return first * kRowScales + lane * 2;
}

/// `scales`: this lane's first ones.
__device__ __forceinline__ void read_groups(KeyGroups& to, const std::uint8_t* scales) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    to.of[i / 2][i & 1] = *reinterpret_cast<const std::uint16_t*>(scales + i * 8 * kRowScales);
}

/// Eight codes of a row, of one group.
template <class Item, class Table>
__device__ __forceinline__ void widen(std::uint32_t (&items)[4], const uint4& codes, int word,
                                      const Table& magnitudes) {
  const std::uint32_t eight = word == 0   ? codes.x
                              : word == 1 ? codes.y
                              : word == 2 ? codes.z
                                          : codes.w;
  if constexpr (std::is_same_v<Table, common::RoundedMagnitudes>) {
    common::widen_e2m1x8<Item>(items, eight, magnitudes);
  } else {
    common::widen_e2m1x8(items, eight, magnitudes, magnitudes);
  }
}

/// 16 keys of a warp times every column, whose items are of type Item.
template <class Traits, class Item, class Table>
__device__ __forceinline__ void multiply_packed(float (&d)[Traits::kTiles][4],
                                                const uint4 (&keys)[2][1],
                                                const std::uint32_t (&groups)[2],
                                                const Queries<Traits>& q, const Table* table) {
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    const int shift = word / 2 * 8;
    std::uint32_t upper[4], lower[4];
    widen<Item>(upper, keys[0][0], word, table[groups[0] >> shift & 0xff]);
    widen<Item>(lower, keys[1][0], word, table[groups[1] >> shift & 0xff]);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile) {
        const std::uint32_t* b = &q.fragments[column_tile][0][4 * word + 2 * step];
        ptx::mma_m16n8k16<Item>(
            d[column_tile],
            {upper[2 * step], lower[2 * step], upper[2 * step + 1], lower[2 * step + 1]}, b[0],
            b[1]);
      }
    }
  }
}

/// As reduce_keys, over columns of type Item; `all`: the scale of all keys, or 1.
template <class Traits, class Item, class Table>
__device__ __forceinline__ void reduce_packed(float (&best)[Traits::kTiles][2],
                                              const StepKeys<Traits>& keys, const KeyGroups& groups,
                                              const Queries<Traits>& q, const Table* table,
                                              float all, int first, unsigned bad, int lane) {
  const bool masked = first + Traits::kKeys > q.min_limit || bad != 0;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    float d[Traits::kTiles][4] = {};
    multiply_packed<Traits, Item>(d, keys.items[tile], groups.of[tile], q, table);
#pragma unroll
    for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile) {
      float(&scores)[4] = d[column_tile];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (std::is_same_v<Item, typename Traits::Item>) {
          scores[i] *= all;
        } else {
          scores[i] *= q.unit[column_tile][i & 1];
        }
      }
      if (masked) mask_scores<Traits>(scores, q, column_tile, tile, first, bad, lane);
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // fmaxf drops NaN: a NaN token score counts as -inf
        const float x = fmaxf(scores[i], scores[2 + i]);
        best[column_tile][i] = fmaxf(tile == 0 ? -INFINITY : best[column_tile][i], x);
      }
    }
  }
#pragma unroll
  for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile) {
    best[column_tile][0] = column_max(best[column_tile][0]);
    best[column_tile][1] = column_max(best[column_tile][1]);
  }
}

}  // namespace msa::cuda::common::decode
