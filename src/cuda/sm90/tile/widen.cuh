// SPDX-License-Identifier: MIT
// Codes of keys or values become items in the place where both lie.
#pragma once

#include <cstdint>

#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/tile/descriptor.cuh"
#include "cuda/sm90/tile/swizzle.cuh"

namespace msa::cuda::sm90 {

/// Where the codes of a tile of kRows rows of 128 lie: one swizzled panel of bytes, in the place of
/// the second of the two panels of items that they become.
template <int kRows>
__device__ __forceinline__ std::uint8_t* codes_of(std::uint8_t* tile) {
  return tile + kRows * kPanelRowBytes;
}

/// Widens a tile, warp `warp` of kWarps; a row stays with one warp, which reads all of its codes
/// before it writes where they were. Four rows a turn, kTurns turns at a time. The warp's writes
/// are ordered before what wgmma and the copy engine do afterwards.
template <class Item, int kRows, int kWarps, int kTurns>
__device__ __forceinline__ void widen_rows(std::uint8_t* tile, int warp, int lane) {
  constexpr int kTurnRows = 4;
  static_assert(kRows % (kTurnRows * kTurns) == 0, "whole turns");
  const int chunk = lane & 7;  // of 16 codes
  const int half = chunk >> 2;
  std::uint8_t* panel = tile + half * kRows * kPanelRowBytes;
#pragma unroll 1
  for (int first = warp * kTurnRows * kTurns; first < kRows; first += kWarps * kTurnRows * kTurns) {
    uint4 codes[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int row = first + turn * kTurnRows + lane / 8;
      codes[turn] =
          *reinterpret_cast<const uint4*>(codes_of<kRows>(tile) + swizzled_chunk(row, chunk));
    }
    __syncwarp();
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int row = first + turn * kTurnRows + lane / 8;
      const std::uint32_t words[4] = {codes[turn].x, codes[turn].y, codes[turn].z, codes[turn].w};
      std::uint32_t items[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        items[2 * i] = ptx::widen_e4m3x2<Item>(static_cast<std::uint16_t>(words[i]));
        items[2 * i + 1] = ptx::widen_e4m3x2<Item>(static_cast<std::uint16_t>(words[i] >> 16));
      }
      const uint4 low{items[0], items[1], items[2], items[3]};
      const uint4 high{items[4], items[5], items[6], items[7]};
      // Lanes of the two panels begin with different chunks, or they would meet in the same banks.
      const int at = (chunk & 3) * 2;
      *reinterpret_cast<uint4*>(panel + swizzled_chunk(row, at + half)) = half == 0 ? low : high;
      *reinterpret_cast<uint4*>(panel + swizzled_chunk(row, at + 1 - half)) =
          half == 0 ? high : low;
    }
  }
  ptx::fence_proxy_async_shared();
}

}  // namespace msa::cuda::sm90
