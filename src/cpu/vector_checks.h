// SPDX-License-Identifier: MIT
// The vector layer of a level (isa/vec_*.h) as functions over arrays, so that a test can hold each
// wrapper to what it promises.
#pragma once

#include <cstdint>

namespace msa::cpu {

struct VectorChecks {
  int lanes = 0;
  // Over the lanes of one vector.
  void (*exp2)(const float* x, float* y) = nullptr;
  void (*load_f16)(const std::uint16_t* x, float* y) = nullptr;
  void (*load_bf16)(const std::uint16_t* x, float* y) = nullptr;
  void (*load_e4m3)(const std::uint8_t* x, float* y) = nullptr;
  void (*load_e2m1)(const std::uint8_t* x, const float* magnitudes, float* y) = nullptr;
  void (*store_f16)(const float* x, std::uint16_t* y) = nullptr;
  void (*store_bf16)(const float* x, std::uint16_t* y) = nullptr;
  void (*max)(const float* a, const float* b, float* y) = nullptr;
  void (*fma)(const float* a, const float* b, const float* c, float* y) = nullptr;
  /// y = a > b ? a : b by greater() and select(); returns the mask's bits.
  unsigned (*pick_greater)(const float* a, const float* b, float* y) = nullptr;
  /// y = a - b clamped to [0, b]; returns the mask of y > 0.
  unsigned (*clamp_difference)(const std::int32_t* a, std::int32_t b, std::int32_t* y) = nullptr;
  unsigned (*nan_or_equal)(const float* a, const float* b) = nullptr;
  /// lanes x lanes words.
  void (*transpose)(const std::uint32_t* from, std::uint32_t* to) = nullptr;
  /// y[i] = sum of the lanes of row i of x, lanes x lanes.
  void (*sum_each)(const float* x, float* y) = nullptr;
  /// acc += a * b, one word each.
  void (*step_f32)(const float* a, const float* b, float* acc) = nullptr;

  // Where the level has products of bf16 pairs; null elsewhere.
  void (*step_bf16)(const std::uint32_t* a, const std::uint32_t* b, float* acc) = nullptr;
  void (*widen_e4m3)(const std::uint8_t* codes, std::uint16_t* to) = nullptr;
  void (*widen_e2m1)(const std::uint8_t* pairs, const std::uint16_t* values,
                     std::uint16_t* to) = nullptr;
  void (*pair)(const float* even, const float* odd, std::uint32_t* words) = nullptr;
  /// Two rows of `dim` values to strips of `lanes` words, `strip` words apart.
  void (*interleave)(const std::uint16_t* even, const std::uint16_t* odd, std::int64_t dim,
                     std::uint32_t* to, std::int64_t strip) = nullptr;

  // Where the level has tiles; null elsewhere. acc, 16 x 16, += 16 rows of 64 bytes times 16
  // columns of as much, [word][column]: of bf16 to f32, of codes to i32.
  void (*multiply_pairs)(const void* rows, const void* columns, void* acc) = nullptr;
  void (*multiply_codes)(const void* rows, const void* columns, void* acc) = nullptr;
};

}  // namespace msa::cpu
