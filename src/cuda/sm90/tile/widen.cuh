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

/// Widens tiles of kRows rows, as one of kWarps warps. A turn of a warp is four rows; of the eight
/// lanes that read or write at a time four take half a row each of one row, four of another whose
/// number differs in the bits 0 and 2, so that the swizzle puts their chunks in other banks, codes
/// and items alike. Two turns are a step of eight rows; the numbers of their rows differ in bit 1.
template <class Item, int kRows, int kWarps, int kAhead>
class Widener {
 public:
  __device__ __forceinline__ Widener(int warp, int lane) : warp_(warp) {
    const int row = (lane >> 4) ^ ((lane & 4) != 0 ? 5 : 0);
    const int chunk = (lane >> 1 & 4) | (lane & 3);  // of 16 codes, of eight
    const int first = warp * kStepBytes;
    codes_ = first + kRows * kPanelRowBytes + swizzled_chunk(row, chunk);
    items_ = first + (chunk >> 2) * kRows * kPanelRowBytes + swizzled_chunk(row, (chunk & 3) * 2);
  }

  /// A row stays with one warp, which reads all of its codes before it writes where they were, and
  /// those of the next kAhead turns before it writes these. The warp's writes are ordered before
  /// what wgmma and the copy engine do afterwards.
  __device__ __forceinline__ void widen(std::uint8_t* tile) const {
    int codes_here = codes_, items_here = items_;
    asm volatile("" : "+r"(codes_here), "+r"(items_here));  // six sums a tile, not six registers
    const std::uint8_t* const from[2] = {tile + codes_here, tile + (codes_here ^ kNextTurn)};
    std::uint8_t* const to[2][2] = {
        {tile + items_here, tile + (items_here ^ kNextChunk)},
        {tile + (items_here ^ kNextTurn), tile + (items_here ^ (kNextTurn | kNextChunk))}};
    uint4 codes[2 * kMine];
#pragma unroll
    for (int turn = 0; turn < kAhead; ++turn) codes[turn] = read(from, turn);
#pragma unroll
    for (int turn = 0; turn < 2 * kMine; ++turn) {
      if (!mine(turn / 2)) break;
      if (turn + kAhead < 2 * kMine && mine((turn + kAhead) / 2))
        codes[turn + kAhead] = read(from, turn + kAhead);
      __syncwarp();
      const std::uint32_t words[4] = {codes[turn].x, codes[turn].y, codes[turn].z, codes[turn].w};
      std::uint32_t items[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) ptx::widen_e4m3x4<Item>(words[i], items[2 * i], items[2 * i + 1]);
      *reinterpret_cast<uint4*>(to[turn & 1][0] + offset(turn)) =
          uint4{items[0], items[1], items[2], items[3]};
      *reinterpret_cast<uint4*>(to[turn & 1][1] + offset(turn)) =
          uint4{items[4], items[5], items[6], items[7]};
    }
    ptx::fence_proxy_async_shared();
  }

 private:
  static constexpr int kStepBytes = 8 * kPanelRowBytes;  // after which the swizzle repeats
  static constexpr int kSteps = kRows / 8;
  static constexpr int kMine = (kSteps + kWarps - 1) / kWarps;   // of a warp, at most
  static constexpr int kNextTurn = 2 * kPanelRowBytes | 2 << 4;  // a flip: bit 1 of row and chunk
  static constexpr int kNextChunk = 1 << 4;                      // of items: a flip

  /// Whether the warp has a step of that number.
  __device__ __forceinline__ bool mine(int step) const {
    return (step + 1) * kWarps <= kSteps || step * kWarps + warp_ < kSteps;
  }
  __device__ __forceinline__ static int offset(int turn) { return turn / 2 * kWarps * kStepBytes; }
  __device__ __forceinline__ static uint4 read(const std::uint8_t* const (&from)[2], int turn) {
    return *reinterpret_cast<const uint4*>(from[turn & 1] + offset(turn));
  }

  const int warp_;
  int codes_;  // of the first turn, in bytes of the tile
  int items_;
};

}  // namespace msa::cuda::sm90
