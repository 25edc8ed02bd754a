// SPDX-License-Identifier: MIT
// Codes of e2m1 become items: a table holds for each of the 256 scales of a group the eight
// magnitudes that its codes may have, code times scale and, where the format says so, rounded to
// e4m3. All of them are exact in bf16 and f16. Looking codes up takes a byte of an item at a time,
// four codes an instruction, and signs are put on their high bytes.
#pragma once

#include <cstdint>

#include "cuda/common/ptx/math.cuh"
#include "cuda/params.h"

namespace msa::cuda::common {

/// Eight magnitudes: their low bytes, four a word, then their high bytes.
using Magnitudes = uint4;
inline constexpr int kMagnitudeTable = 256;  // entries, one for each code of e4m3

/// What a code without its sign stands for.
__device__ __forceinline__ float magnitude_of(int code) {
  constexpr float kMagnitudes[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  return kMagnitudes[code];
}

/// The scale of all, or 1.
__device__ __forceinline__ float scale_of_all(const GroupScales& scales) {
  return scales.all == nullptr ? 1.0f : __ldg(scales.all);
}

/// Up to here no value overflows: 448 * 6 * 2^116 does not.
inline constexpr float kLargestScaleOfAll = 0x1p116f;
__device__ __forceinline__ bool is_odd_scale_of_all(float scale) {
  return !(fabsf(scale) <= kLargestScaleOfAll);
}

/// A magnitude as it is multiplied. Whatever multiplies sums of items by `all` later gets infinity
/// and NaN where the value itself, times `all`, is infinite or NaN.
template <class Item>
__device__ __forceinline__ std::uint16_t magnitude_item(float magnitude, float scale, bool rounded,
                                                        float all) {
  float x = magnitude * scale;
  if (rounded) x = ptx::round_to_e4m3(x);
  const float value = x * all;
  if (!(fabsf(value) < INFINITY)) x = value == value ? copysignf(INFINITY, x) : NAN;
  return static_cast<std::uint16_t>(ptx::cvt_pack<Item>(x, 0.0f));
}

/// Fills a table, thread `thread` of `threads`; a barrier of theirs publishes it.
template <class Item>
__device__ __forceinline__ void fill_magnitudes(Magnitudes* table, bool rounded, float all,
                                                int thread, int threads) {
#pragma unroll 1
  for (int code = thread; code < kMagnitudeTable; code += threads) {
    const float scale = ptx::e4m3_to_float(static_cast<std::uint8_t>(code));
    std::uint32_t low[2] = {0, 0};
    std::uint32_t high[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const std::uint32_t item = magnitude_item<Item>(magnitude_of(i), scale, rounded, all);
      low[i / 4] |= (item & 0xff) << (i % 4 * 8);
      high[i / 4] |= (item >> 8) << (i % 4 * 8);
    }
    table[code] = {low[0], low[1], high[0], high[1]};
  }
}

/// What a code stands for whose magnitudes are items of a table of Item.
template <class Item>
__device__ __forceinline__ float value_of(int code, const Magnitudes& of_group) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(&of_group) + (code & 7);
  const std::uint32_t sign = (code & 8u) << 12;
  return ptx::cvt_unpack<Item>((bytes[0] | bytes[8] << 8) ^ sign).x;
}

/// Signs of four of eight codes, on the high bits of bytes: of the first ones (half 0) or the
/// others.
__device__ __forceinline__ std::uint32_t signs_of(std::uint32_t codes, int half) {
  constexpr std::uint32_t kSigns = 0x80808080u;
  const std::uint32_t even = codes << 4;  // sign bits of even codes where those of odd ones are
  return ptx::prmt(even, codes, half == 0 ? 0xd9c8 : 0xfbea) & kSigns;
}

/// Where magnitudes are rounded to e4m3: their codes, a byte each.
using RoundedMagnitudes = uint2;

/// As fill_magnitudes.
__device__ __forceinline__ void fill_rounded_magnitudes(RoundedMagnitudes* table, int thread,
                                                        int threads) {
#pragma unroll 1
  for (int code = thread; code < kMagnitudeTable; code += threads) {
    const float scale = ptx::e4m3_to_float(static_cast<std::uint8_t>(code));
    std::uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pairs[i] = ptx::cvt_e4m3x2(magnitude_of(2 * i) * scale, magnitude_of(2 * i + 1) * scale);
    table[code] = {pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16};
  }
}

/// Eight codes of one group as pairs of Item, in their order: looked up as bytes, which are half of
/// the items' bytes, and widened by an instruction for each pair where Item is f16.
template <class Item>
__device__ __forceinline__ void widen_e2m1x8(std::uint32_t (&items)[4], std::uint32_t codes,
                                             const RoundedMagnitudes& of_group) {
  const std::uint32_t indices = codes & 0x77777777u;
  ptx::widen_e4m3x4<Item>(ptx::prmt(of_group.x, of_group.y, indices) ^ signs_of(codes, 0), items[0],
                          items[1]);
  ptx::widen_e4m3x4<Item>(ptx::prmt(of_group.x, of_group.y, indices >> 16) ^ signs_of(codes, 1),
                          items[2], items[3]);
}

/// Eight codes as pairs of items, in their order: the first four with one scale, the others with
/// another.
__device__ __forceinline__ void widen_e2m1x8(std::uint32_t (&items)[4], std::uint32_t codes,
                                             const Magnitudes& first, const Magnitudes& second) {
  const std::uint32_t indices = codes & 0x77777777u;
  const std::uint32_t low[2] = {ptx::prmt(first.x, first.y, indices),
                                ptx::prmt(second.x, second.y, indices >> 16)};
  const std::uint32_t high[2] = {ptx::prmt(first.z, first.w, indices) ^ signs_of(codes, 0),
                                 ptx::prmt(second.z, second.w, indices >> 16) ^ signs_of(codes, 1)};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    items[2 * half] = ptx::prmt(low[half], high[half], 0x5140);
    items[2 * half + 1] = ptx::prmt(low[half], high[half], 0x7362);
  }
}

}  // namespace msa::cuda::common
