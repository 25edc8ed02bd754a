// SPDX-License-Identifier: MIT
// What an instance of the scoring kernel is compiled for, and what a launch tells it beside what
// all scoring kernels are told. Host and device read the same.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/common/select/config.h"

namespace msa::cuda::sm90::select {

/// What a launch takes from keys.
enum class Pass : std::uint8_t {
  Scores,  // maxima of blocks, of all keys
  Codes,   // of a filter's codes: the largest product of each part
  Fast,    // of a filter's codes: maxima of blocks
  Listed,  // maxima of the blocks of a tile's list, from their listed parts
};

struct Config {
  Storage storage = Storage::Bf16;  // of index queries; keys are stored alike, or are codes
  int dim = 128;                    // 128 or 64
  int block = 128;                  // 128 or 64; of scores
  bool scratch = true;  // rows of a tile one after the other, in float4s; else the caller's strides
  Pass pass = Pass::Scores;
  friend constexpr bool operator==(const Config&, const Config&) = default;
};

using common::select::kPartKeys;
using common::select::kTileKeys;
using common::select::kTileParts;
using common::select::kTileRows;

inline constexpr int kNoPart = 1 << 25;  // its keys lie behind all others

/// Lists of a launch's tiles, of each index head one, written by candidates.cu.
struct PartLists {
  int* parts = nullptr;   // ascending, kNoPart up to whole key tiles
  int* blocks = nullptr;  // that they belong to, ascending
  int2* sizes = nullptr;  // key tiles of parts, blocks
  std::int64_t stride_parts = 0;
  std::int64_t stride_blocks = 0;
};

/// One launch of an instance.
struct Params : common::select::Params {
  int rotated = 0;  // Codes, Fast: of rotated keys
  // Codes: a word a key tile, of rows as the scratch has them.
  std::uint32_t* products = nullptr;
  std::int64_t stride_products = 0;    // a multiple of 4
  PartLists lists{};                   // Listed
  FilterBounds<const float> bounds{};  // Fast: scales of pages
};

}  // namespace msa::cuda::sm90::select
