// SPDX-License-Identifier: MIT
// The inverse of a selection: for each KV head, block -> its queries in ascending order, each with
// the slot that holds the block. Behind the prologue, which cuts the queries into tiles and says
// where the blocks of each request begin.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/common/prologue/launch.h"
#include "cuda/params.h"

namespace msa::cuda::common::invert {

/// int32 [Hkv, n] with any strides.
struct HeadRows {
  int* data = nullptr;
  std::int64_t stride_h = 0;
  std::int64_t stride_i = 1;
};

struct Params {
  prologue::Params front{};  // the batch, and what the prologue wrote about it
  int heads = 1;             // Hkv
  int max_blocks = 0;        // of one request
  Lists lists{};
  int* counts = nullptr;         // [max_tiles, Hkv, max_blocks]: scratch
  HeadRows row_ptr{};            // [Hkv, num_entries]
  std::int64_t num_entries = 1;  // at least one more than the blocks of the batch
  HeadRows q_indices{};          // [Hkv, length]
  HeadRows q_slots{};            // [Hkv, length]
  std::int64_t length = 0;       // at least T * k
};

/// Tokens of a tile: as few as the counters have room for, since a warp walks a tile's queries one
/// after the other. From bounds alone.
int tokens_per_tile(std::int64_t total_q, std::int64_t heads, std::int64_t max_blocks);

void launch(const Params& params, cudaStream_t stream);

}  // namespace msa::cuda::common::invert
