// SPDX-License-Identifier: MIT
// What an instance of the backward kernel is compiled for, and what a launch tells it. Host and
// device read the same.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/common/backward/params.h"
#include "cuda/params.h"

namespace msa::cuda::mma::backward {

struct Config {
  Storage storage = Storage::Bf16;  // of q, k, v and dout
  int head_dim = 128;
  int keys = 128;  // of a tile, 16 a warp
  int rows = 64;   // of a step: (token, query head) pairs
  friend constexpr bool operator==(const Config&, const Config&) = default;
};

inline constexpr int kRowInfos = 4;  // steps whose rows shared memory knows

/// Keys and values, q and dout of two steps, and dS.
constexpr std::size_t tile_bytes(const Config& config) {
  const int rows = 2 * config.keys + 4 * config.rows;
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(config.head_dim) * 2 +
         static_cast<std::size_t>(config.rows) * static_cast<std::size_t>(config.keys) * 2;
}
/// What is known of rows, what rounding took from each, and a little more.
constexpr std::size_t beside_tiles(const Config& config) {
  const int row_bytes = kRowInfos * 28 + config.keys / 16 * 4;
  return static_cast<std::size_t>(config.rows) * static_cast<std::size_t>(row_bytes) + 1024;
}
constexpr std::size_t shared_bytes(const Config& config) {
  return tile_bytes(config) + beside_tiles(config);
}

/// Columns of dq that one warp multiplies; it has 32 rows.
constexpr int part_dims(const Config& config) {
  return config.head_dim / (config.keys / 16 / (config.rows / 32));
}

struct Params {
  common::backward::Pairs pairs{};
  common::backward::Work work{};
  Rows<const void> q{};  // 16 bits an item
  Rows<const void> dout{};
  KeyRows<const std::uint16_t> k{};
  KeyRows<const std::uint16_t> v{};
  Rows<const float> lse{};
  const float* delta = nullptr;  // [T, Hq]
  float scale = 1;
  float scale_log2 = 1;
  common::backward::Shares shares{};  // none: dq is not wanted
  float* parts = nullptr;             // [max_parts, 2, keys, head_dim]
  common::backward::KeySums sums{};
  common::backward::KeyRowsOut dk{};
  common::backward::KeyRowsOut dv{};
};

}  // namespace msa::cuda::mma::backward
