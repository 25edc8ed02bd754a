// SPDX-License-Identifier: MIT
// Scores of the blocks that a filter leaves, from the index keys themselves, from the host: what an
// instance is compiled for, what a launch tells it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/common/decode/launch.h"

namespace msa::cuda::common::decode {

struct RescoreConfig {
  Storage storage = Storage::Bf16;  // of index queries and keys
  int dim = 128;
  friend constexpr bool operator==(const RescoreConfig&, const RescoreConfig&) = default;
};

struct RescoreParams {
  BatchParams batch{};
  const RequestRecord* records = nullptr;
  Rows<const void> index_q{};  // [T, Hi, Di]
  KeyRows<const void> index_k{};
  int heads = 0;    // Hi
  int heads_k = 1;  // Hik
  int topk = 16;
  int token_slots = 1;                // as in SelectParams
  int ctas = 1;                       // that share a row's blocks
  Rows<const std::uint32_t> lower{};  // as in ScoreParams, rows 16-byte aligned
  Rows<const std::uint32_t> upper{};
  Rows<std::uint32_t> orders{};  // kForced or kNoBlock before; then what blocks are ordered by
  Rows<int> candidates{};        // [T, Hi], optional: how many blocks were scored
};

/// CTAs that share a row's blocks: one an SM for all rows.
int rescore_ctas(std::int64_t rows, std::int64_t max_blocks, int multiprocessors);

/// Defined in instances/*.cu, one each.
template <RescoreConfig cfg>
void launch_rescore_instance(const RescoreParams& params, cudaStream_t stream);

void launch_rescore(const RescoreConfig& config, const RescoreParams& params, cudaStream_t stream);

}  // namespace msa::cuda::common::decode
