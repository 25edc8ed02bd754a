// SPDX-License-Identifier: MIT
// What an instance of the scoring kernel is compiled for, and what a launch tells it. Host and
// device read the same.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/common/prologue/launch.h"
#include "cuda/params.h"

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

inline constexpr int kTileRows = 192;  // rows (token, index head) of one query tile
inline constexpr int kTileKeys = 128;  // keys of one key tile

inline constexpr int kPartKeys = 32;                      // of a block: what a filter bounds
inline constexpr int kTileParts = kTileKeys / kPartKeys;  // of a key tile
inline constexpr int kNoPart = 1 << 25;                   // its keys lie behind all others

/// Lists of a launch's tiles, of each index head one, written by candidates.cu.
struct PartLists {
  int* parts = nullptr;   // ascending, kNoPart up to whole key tiles
  int* blocks = nullptr;  // that they belong to, ascending
  int2* sizes = nullptr;  // key tiles of parts, blocks
  std::int64_t stride_parts = 0;
  std::int64_t stride_blocks = 0;
};

/// One launch of the scoring kernel: num_tiles * spans * groups items, taken in turn by the CTAs.
struct Params {
  BatchParams batch{};
  common::prologue::TileView tiles{};  // of num_tiles tiles
  std::int64_t num_tiles = 0;
  unsigned* next_item = nullptr;  // 0 before the launch
  std::int64_t span = 0;          // key tiles of one item, a multiple of 4
  int spans = 1;                  // items of one tile
  int groups = 1;                 // index-K heads, or index heads where a tile has one
  bool tile_major = false;        // items of a tile follow each other; else items of a span do
  int heads = 1;                  // index heads of one group
  int shares = 1;                 // groups of one index-K head

  Rows<const void> queries{};  // [T, Hi, Di]
  bool queries_paired = true;  // address and strides allow 4-byte reads

  // The caller's [T, Hi, columns]; or the scratch, whose stride_h lies between rows, a multiple
  // of 4.
  Slots<float> scores{};
  std::int64_t columns = 0;

  int rotated = 0;  // Codes, Fast: of rotated keys
  // Codes: a word a key tile, of rows as the scratch has them.
  std::uint32_t* products = nullptr;
  std::int64_t stride_products = 0;    // a multiple of 4
  PartLists lists{};                   // Listed
  FilterBounds<const float> bounds{};  // Fast: scales of pages
};

}  // namespace msa::cuda::sm90::select
