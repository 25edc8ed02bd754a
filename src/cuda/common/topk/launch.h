// SPDX-License-Identifier: MIT
// Selection from block scores in memory: the k best visible blocks of each row, forced blocks
// first, ties by lower id. Serves select_topk (scores of the caller) and select_blocks (scores of
// one chunk of query tiles in the workspace).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/common/prologue/launch.h"

namespace msa::cuda::common::topk {

inline constexpr int kMaxTopk = 64;

/// The blocks that the scores of a tile's group stand for, ascending; those of (tile, group) t
/// begin at t * stride, and sizes[t].y tells how many there are.
struct Listed {
  const int* blocks = nullptr;
  const int2* sizes = nullptr;
  std::int64_t stride = 0;
};

struct TopkParams {
  prologue::TileView tiles{};  // of num_tiles tiles
  std::int64_t num_tiles = 0;
  int groups = 1;          // row groups of a tile (index-K heads)
  int heads = 1;           // heads of a group: row r of a group is token r / heads, head r % heads
  int rows_per_group = 1;  // at least tokens_per_tile * heads

  // The caller's [T, groups * heads, columns]; or rows of a tile one after the other, stride_h
  // apart.
  Slots<const float> scores{};
  std::int64_t columns = 0;  // scores of a row; no column behind them is read
  bool by_token = true;      // the caller's

  Slots<int> ids{};       // [T, groups * heads, k]
  Slots<float> chosen{};  // the same shape, or none
  // [T, groups * heads], or none: -1, as no filter was read; 0 where nothing is visible.
  Rows<int> candidates{};
  Listed listed{};  // launch_topk_listed

  int k = 16;
  int block_size = 128;
  int local_blocks = 1;
  int init_blocks = 0;
  bool causal = true;
};

/// Several warps a row where rows are few and long: decided from bounds alone.
constexpr bool splits_rows(std::int64_t rows, std::int64_t columns) {
  return columns > 1024 &&
         rows <= 8192;  // 8192 warps fill the GPU twice over; below, latency of a row decides
}

void launch_topk(const TopkParams& params, bool split_rows, cudaStream_t stream);

/// The same of params.listed: a row's scores are those of its tile's list, and whatever it may
/// choose is there. Candidates are not written.
void launch_topk_listed(const TopkParams& params, cudaStream_t stream);

/// Tokens of a tile of select_topk.
int tokens_per_tile(int heads);

/// select_topk over the tiles of `params`. Of the rest, the scores by token, the outputs and what
/// decides are read; heads are params.heads.
void launch_select_topk(const TopkParams& params, bool split_rows, cudaStream_t stream);

}  // namespace msa::cuda::common::topk
