// SPDX-License-Identifier: MIT
// A consumer warp's work on keys and values in four bits: they come from the ring two in a byte,
// and a table in shared memory makes items of them in registers (common/four_bits.cuh).
//
// A lane takes 32 codes of one key at a time, in the order in which q is loaded (state.cuh), and so
// has two groups and two scales. Of P V an ldmatrix gives four columns of two keys, a product takes
// every fourth column, and a lane ends with eight neighbours.
#pragma once

#include "cuda/common/decode/attend/codes.cuh"
#include "cuda/common/decode/attend/state.cuh"
#include "cuda/common/four_bits.cuh"
#include "cuda/common/ptx/matrix.cuh"
#include "cuda/common/tile/swizzle.cuh"

namespace msa::cuda::common::decode {

/// The table of values where it is not that of keys: behind the ring, in the place of a selection's
/// scratch.
template <class Traits>
__device__ __forceinline__ common::Magnitudes* value_table(std::uint8_t* stages) {
  return reinterpret_cast<common::Magnitudes*>(stages + Traits::kRingBytes - Traits::kSpareBytes);
}

/// Whether it is not: magnitudes are the same numbers, but for those that overflow with the scale
/// of all.
__device__ __forceinline__ bool values_differ(float of_keys, float of_values) {
  return common::is_odd_scale_of_all(of_keys) || common::is_odd_scale_of_all(of_values);
}

/// Fills a table; a barrier of the CTA publishes it.
template <class Traits>
__device__ __forceinline__ void fill_table(const GroupScales& scales, float all,
                                           common::Magnitudes* table) {
  common::fill_magnitudes<typename Traits::Factor>(table, scales.rounded != 0, all, threadIdx.x,
                                                   Traits::kThreads);
}

/// Fills that of values behind a selection, where it is not that of keys. All threads of the CTA
/// call it.
template <class Traits>
__device__ __forceinline__ void fill_value_table(const AttendParams& p, std::uint8_t* stages) {
  const float of_values = common::scale_of_all(p.v_groups);
  if (!values_differ(common::scale_of_all(p.k_groups), of_values)) return;
  fill_table<Traits>(p.v_groups, of_values, value_table<Traits>(stages));
  __syncthreads();
}

/// S[heads][keys] of this warp's keys.
template <class Traits>
__device__ __forceinline__ void multiply_packed_keys(float (&scores)[Traits::kKeyTiles][4],
                                                     const WarpState<Traits>& s, std::uint8_t* keys,
                                                     const common::Magnitudes* table, int warp,
                                                     int lane) {
  using Item = typename Traits::Factor;
  const uint2* groups = groups_of<Traits>(keys);
#pragma unroll
  for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[tile][j] = 0.f;
    const int row = warp * Traits::kKeys + tile * 8 + (lane >> 2);
    const uint4 four = *reinterpret_cast<const uint4*>(keys + packed_chunk(row, lane & 3));
    const std::uint32_t codes[4] = {four.x, four.y, four.z, four.w};
    const std::uint32_t scales = reinterpret_cast<const std::uint16_t*>(groups + row)[lane & 3];
    const common::Magnitudes of_group[2] = {table[scales & 0xff], table[scales >> 8]};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t items[4];
      common::widen_e2m1x8(items, codes[i], of_group[i / 2], of_group[i / 2]);
      ptx::mma_m16n8k16<Item>(scores[tile], s.q[2 * i], items[0], items[1]);
      ptx::mma_m16n8k16<Item>(scores[tile], s.q[2 * i + 1], items[2], items[3]);
    }
  }
}

/// Of all keys, where queries are not f16.
template <class Traits>
__device__ __forceinline__ void score_packed_singly(float (&scores)[Traits::kKeyTiles][4],
                                                    const AttendParams& p, const Item& item,
                                                    std::uint8_t* keys,
                                                    const common::Magnitudes* table, int warp,
                                                    int lane) {
  score_singly<Traits>(
      scores, p, item, lane, [](int) { return true; },
      [&](int key, int d) {
        const int row = warp * Traits::kKeys + key;
        const std::uint8_t two = keys[packed_chunk(row, d >> 5) + (d >> 1 & 15)];
        const auto scale =
            reinterpret_cast<const std::uint8_t*>(groups_of<Traits>(keys) + row)[d >> 4];
        return common::value_of<typename Traits::Factor>(two >> (d & 1) * 4 & 15, table[scale]);
      });
}

template <class Traits>
__device__ __forceinline__ void scale_scores(float (&scores)[Traits::kKeyTiles][4], float scale) {
#pragma unroll
  for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[tile][j] *= scale;
  }
}

template <class Traits>
__device__ __forceinline__ void scale_output(WarpState<Traits>& s, float scale) {
#pragma unroll
  for (int i = 0; i < Traits::kDimTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) s.out[i][j] *= scale;
  }
}

/// Adds P V. Of 32 columns of V a product takes every fourth.
template <class Traits>
__device__ __forceinline__ void multiply_packed_values(
    WarpState<Traits>& s, const std::uint32_t (&probabilities)[Traits::kSteps][4],
    std::uint8_t* values, const common::Magnitudes* table, int warp, int lane) {
  const uint2* groups = groups_of<Traits>(values);
  // A lane's columns lie in the first or in the second group of a chunk.
  const std::uint32_t of_chunks = lane < 16 ? 0x6420 : 0x7531;
#pragma unroll
  for (int step = 0; step < Traits::kSteps; ++step) {
    const int first = warp * Traits::kKeys + step * 16;
    std::uint32_t scales[2][2];  // of keys 8 i + 2 (lane % 4) and of the next one, chunk by chunk
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 two = *reinterpret_cast<const uint4*>(groups + first + i * 8 + (lane & 3) * 2);
      scales[i][0] = ptx::prmt(two.x, two.y, of_chunks);
      scales[i][1] = ptx::prmt(two.z, two.w, of_chunks);
    }
#pragma unroll
    for (int pair = 0; pair < kPackedChunks / 2; ++pair) {
      std::uint32_t codes[4];
      ptx::ldmatrix_x4_trans(codes,
                             values + packed_chunk(first + (lane & 15), pair * 2 + (lane >> 4)));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int chunk = pair * 2 + half;
        std::uint32_t columns[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          std::uint32_t items[4];  // of one key, then of the next one
          common::widen_e2m1x8(items, codes[2 * half + i],
                               table[scales[i][0] >> (chunk * 8) & 0xff],
                               table[scales[i][1] >> (chunk * 8) & 0xff]);
#pragma unroll
          for (int j = 0; j < 4; ++j)
            columns[i][j] = ptx::prmt(items[j / 2], items[2 + j / 2], j % 2 == 0 ? 0x5410 : 0x7632);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          ptx::mma_m16n8k16<typename Traits::Factor>(s.out[chunk * 4 + j], probabilities[step],
                                                     columns[0][j], columns[1][j]);
        }
      }
    }
  }
}

}  // namespace msa::cuda::common::decode
