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

/// Which row of a turn pair's eight, and which of its eight chunks of 16 codes, a lane takes. Eight
/// lanes read or write at a time: half a row each of rows whose numbers differ in the bits 0 and 2,
/// so that the swizzle puts their chunks in other banks, codes and items alike.
struct WidenLane {
  __device__ __forceinline__ explicit WidenLane(int lane)
      : flip((lane & 4) != 0 ? 5 : 0), pair(lane >> 4), chunk((lane >> 1 & 4) | (lane & 3)) {}
  __device__ __forceinline__ int row(int turn) const {
    return (turn >> 1) * 8 + (((turn & 1) * 2 + pair) ^ flip);
  }
  int flip;
  int pair;
  int chunk;
};

/// Widens a tile, warp `warp` of kWarps; a row stays with one warp, which reads all of its codes
/// before it writes where they were. Four rows a turn, kTurns turns at a time. The warp's writes
/// are ordered before what wgmma and the copy engine do afterwards.
template <class Item, int kRows, int kWarps, int kTurns>
__device__ __forceinline__ void widen_rows(std::uint8_t* tile, int warp, int lane) {
  constexpr int kTurnRows = 4;
  static_assert(kTurns % 2 == 0 && kRows % (kTurnRows * kTurns) == 0, "whole pairs of turns");
  const WidenLane my(lane);
  std::uint8_t* panel = tile + (my.chunk >> 2) * kRows * kPanelRowBytes;
  const int at = (my.chunk & 3) * 2;  // of the items in their panel
#pragma unroll 1
  for (int first = warp * kTurnRows * kTurns; first < kRows; first += kWarps * kTurnRows * kTurns) {
    uint4 codes[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      codes[turn] = *reinterpret_cast<const uint4*>(codes_of<kRows>(tile) +
                                                    swizzled_chunk(first + my.row(turn), my.chunk));
    }
    __syncwarp();
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int row = first + my.row(turn);
      const std::uint32_t words[4] = {codes[turn].x, codes[turn].y, codes[turn].z, codes[turn].w};
      std::uint32_t items[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        items[2 * i] = ptx::widen_e4m3x2<Item>(static_cast<std::uint16_t>(words[i]));
        items[2 * i + 1] = ptx::widen_e4m3x2<Item>(static_cast<std::uint16_t>(words[i] >> 16));
      }
      *reinterpret_cast<uint4*>(panel + swizzled_chunk(row, at)) =
          uint4{items[0], items[1], items[2], items[3]};
      *reinterpret_cast<uint4*>(panel + swizzled_chunk(row, at + 1)) =
          uint4{items[4], items[5], items[6], items[7]};
    }
  }
  ptx::fence_proxy_async_shared();
}

}  // namespace msa::cuda::sm90
