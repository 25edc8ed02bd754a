// SPDX-License-Identifier: MIT
// What an instance of the attention kernel is compiled for, and what a launch tells it. Host and
// device read the same.
#pragma once

#include <cstdint>

#include "cuda/common/attend/params.h"
#include "cuda/params.h"

namespace msa::cuda::mma::attend {

using common::attend::Walk;

struct Config {
  Storage storage = Storage::Bf16;  // of queries, keys and values
  int head_dim = 128;
  Walk walk = Walk::Dense;
  int warps = 4;   // of a CTA: 4 with 32 rows each where two CTAs fit into an SM, else 8 with 16
  int stages = 4;  // keys and values of two steps; 3: keys of one and values of the other wait
  bool key_scales = false;  // every key and every value has a scale of its own
  friend constexpr bool operator==(const Config&, const Config&) = default;
};

inline constexpr int kTileRows = 128;  // rows of q in a tile: tokens x heads of one group
inline constexpr int kStepKeys = 64;   // of a step; a block has one or two

inline constexpr int kAhead = 4;  // steps of which shared memory knows where their keys lie

/// Of queries and stages; a little more is needed beside them.
constexpr int tile_bytes(int head_dim, int stages) {
  return (kTileRows + stages * kStepKeys) * head_dim * 2;
}
inline constexpr int kBesideTiles = 1024;
inline constexpr int kScaleBytes = 4 * kStepKeys * 4;  // of keys and values of two steps

/// Whether cards of that compute capability, times 10, have the instance: code for those that never
/// plan it is left out. Alike for all that run the same machine code.
constexpr bool is_compiled_for(const Config& config, int capability) {
  if (config.stages == 3) return capability / 10 == 8;
  return config.warps == 8 || config.head_dim == 64 || capability < 120;
}

struct Params {
  common::attend::Params tiles{};
  Rows<const void> q{};  // 16 bits an item
  KeyRows<const std::uint16_t> k{};
  KeyRows<const std::uint16_t> v{};
};

}  // namespace msa::cuda::mma::attend
