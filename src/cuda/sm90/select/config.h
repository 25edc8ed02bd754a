// SPDX-License-Identifier: MIT
// What an instance of the scoring kernel is compiled for, and what a launch tells it. Host and
// device read the same.
#pragma once

#include <cstdint>

#include "cuda/common/prologue/launch.h"
#include "cuda/params.h"

namespace msa::cuda::sm90::select {

struct Config {
  Storage storage = Storage::Bf16;  // of index vectors
  int dim = 128;                    // 128 or 64
  int block = 128;                  // 128 or 64
  bool scratch = true;  // rows of a tile one after the other, in float4s; else the caller's strides
  friend constexpr bool operator==(const Config&, const Config&) = default;
};

inline constexpr int kTileRows = 192;  // rows (token, index head) of one query tile
inline constexpr int kTileKeys = 128;  // keys of one key tile

/// One launch of the scoring kernel: num_tiles * spans * groups items, taken in turn by the CTAs.
struct Params {
  BatchParams batch{};
  common::prologue::TileView tiles{};  // of num_tiles tiles
  std::int64_t num_tiles = 0;
  unsigned* next_item = nullptr;  // 0 before the launch
  std::int64_t span = 0;          // key tiles of one item, a multiple of 4
  int spans = 1;                  // items of one tile
  int groups = 1;                 // index-K heads
  bool tile_major = false;        // items of a tile follow each other; else items of a span do
  int heads = 1;                  // index heads of one index-K head

  Rows<const void> queries{};  // [T, Hi, Di]
  bool queries_paired = true;  // address and strides allow 4-byte reads

  // The caller's [T, Hi, columns]; or the scratch, whose stride_h lies between rows, a multiple
  // of 4.
  Slots<float> scores{};
  std::int64_t columns = 0;
};

}  // namespace msa::cuda::sm90::select
