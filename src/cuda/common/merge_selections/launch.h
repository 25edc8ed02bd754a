// SPDX-License-Identifier: MIT
// Joins the candidates that several shards chose: the k best by score, then by lower global id.
// Forced blocks carry +inf, which makes them the best.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/params.h"

namespace msa::cuda::common::merge_selections {

inline constexpr int kMaxParts = 64;
inline constexpr int kMaxWidth = 256;  // ids of a part

/// Candidates of one shard: ids up to the first -1 of a row, and their scores.
struct Part {
  Lists lists{};
  Slots<const float> scores{};  // the same shape
};

struct Params {
  Part parts[kMaxParts]{};
  int num_parts = 1;
  std::int64_t rows = 0;  // T * Hkv, below 2^31
  int heads = 1;          // Hkv
  int k = 16;
  Slots<int> ids{};       // [T, Hkv, k]
  Slots<float> chosen{};  // the same shape, or none
  StatusWord* status = nullptr;
};

void launch(const Params& params, cudaStream_t stream);

}  // namespace msa::cuda::common::merge_selections
