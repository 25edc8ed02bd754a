// SPDX-License-Identifier: MIT
// What an instance of the kernels of the index loss is compiled for, and what a launch tells it.
// Host and device read the same.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/common/backward/params.h"
#include "cuda/params.h"

namespace msa::cuda::mma::index_loss {

struct Config {
  Storage storage = Storage::Bf16;  // of q, k, index_q and index_k
  int head_dim = 128;
  int index_dim = 128;
  int keys = 64;  // of a tile, 16 a warp
  friend constexpr bool operator==(const Config&, const Config&) = default;
};

inline constexpr int kTokens = 16;     // of a step
inline constexpr int kTurnRows = 64;   // (token, query head) pairs whose scores are made at a time
inline constexpr int kTokenInfos = 4;  // steps whose tokens shared memory knows
inline constexpr int kMostGroup = kTurnRows;

/// Query heads of a token, and rows of zeros behind them: one of the few that share a turn evenly.
constexpr int padded_group(int group) {
  int padded = 8;
  while (padded < group) padded *= 2;
  return padded;
}

/// Keys and index keys, q of two turns, index_q of two steps, and gradients of scores.
constexpr std::size_t tile_bytes(const Config& config) {
  const int items = (config.keys + 2 * kTurnRows) * config.head_dim +
                    (config.keys + 2 * kTokens) * config.index_dim + config.keys * kTokens;
  return static_cast<std::size_t>(items) * 2;
}
constexpr std::size_t shared_bytes(const Config& config) { return tile_bytes(config) + 4096; }

/// Columns of d_index_q that one warp multiplies.
constexpr int part_dims(const Config& config) { return config.index_dim / (config.keys / 16); }

struct Params {
  common::backward::Pairs pairs{};  // group 1: shares are of index heads
  common::backward::Work work{};
  int group = 1;         // query heads of a KV head
  int index_heads = 1;   // of an index key head
  Rows<const void> q{};  // 16 bits an item
  KeyRows<const std::uint16_t> k{};
  Rows<const float> lse{};  // of attention
  Rows<const void> index_q{};
  KeyRows<const std::uint16_t> index_k{};
  const float* weights = nullptr;  // of rows, or none: 1
  std::int64_t stride_weights = 0;
  float scale_log2 = 1;  // of attention's scores
  float index_scale = 1;
  float index_scale_log2 = 1;
  // The first launch writes shares of the student's logarithm, the second, which has none, reads
  // the whole.
  common::backward::StudentShare* student_shares = nullptr;  // [slots]
  const float* student_lse = nullptr;                        // [T, Hi], base 2
  float* loss_shares = nullptr;                              // [slots], or none
  common::backward::Shares shares{};                         // of d_index_q, or none
  float* parts = nullptr;            // of d_index_k: [max_parts, keys, index_dim]
  common::backward::KeySums sums{};  // data nullptr: d_index_k is not wanted
};

}  // namespace msa::cuda::mma::index_loss
