// SPDX-License-Identifier: MIT
// What an instance of the scoring kernel is compiled for, and what a launch tells it beside what
// all scoring kernels are told. Host and device read the same.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/common/select/config.h"

namespace msa::cuda::mma::select {

using common::select::kTileKeys;
using common::select::kTileRows;

struct Config {
  Storage storage = Storage::Bf16;  // of index queries and keys
  int dim = 128;                    // 128 or 64
  friend constexpr bool operator==(const Config&, const Config&) = default;
};

inline constexpr int kCtasPerSm = 2;
inline constexpr int kBoxKeys = 16;  // that one page holds side by side

/// One launch of an instance.
struct Params : common::select::Params {
  KeyRows<const std::uint16_t> keys{};
  bool scratch = true;  // rows of a tile one after the other, in float4s; else the caller's strides
};

}  // namespace msa::cuda::mma::select
