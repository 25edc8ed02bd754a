// SPDX-License-Identifier: MIT
// What a launch tells the kernel of gradients of queries. Host and device read the same.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/common/attend/params.h"
#include "cuda/params.h"
#include "cuda/sm90/attend/config.h"

namespace msa::cuda::sm90::backward_queries {

using common::attend::Walk;

/// The one kind of tile that there is a kernel for; keys of a step are those of a block.
inline constexpr int kHeadDim = 128;
inline constexpr int kBlock = 128;
inline constexpr int kTileRows = attend::kTileRows;

/// Rows and lists as attention has them; `to` is dq.
struct Params : common::attend::Params {
  const std::int64_t* first_blocks = nullptr;  // [B + 1]: blocks of the requests before
  const float* means = nullptr;  // [heads_kv, mean_blocks, head_dim]: what keys have in common
  std::int64_t mean_blocks = 0;
  Rows<const float> lse{};       // [T, Hq]
  const float* delta = nullptr;  // [T, Hq]
  float scale = 1;
  const int* unwanted = nullptr;  // not 0: nothing is done; or none
};

struct Maps {
  CUtensorMap q;
  CUtensorMap dout;
  CUtensorMap k;
  CUtensorMap v;
};

}  // namespace msa::cuda::sm90::backward_queries
