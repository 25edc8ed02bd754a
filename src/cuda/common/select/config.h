// SPDX-License-Identifier: MIT
// What scoring kernels of every architecture agree on: how queries and keys are cut, and what a
// launch is told. Host and device read the same.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/common/prologue/launch.h"
#include "cuda/params.h"

namespace msa::cuda::common::select {

inline constexpr int kTileRows = 192;  // rows (token, index head) of one query tile
inline constexpr int kTileKeys = 128;  // keys of one key tile

inline constexpr int kPartKeys = 32;                      // of a block: what a filter bounds
inline constexpr int kTileParts = kTileKeys / kPartKeys;  // of a key tile

/// One launch of a scoring kernel: num_tiles * spans * groups items, taken in turn by the CTAs.
struct Params {
  BatchParams batch{};
  prologue::TileView tiles{};  // of num_tiles tiles
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
};

}  // namespace msa::cuda::common::select
