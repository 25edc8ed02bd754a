// SPDX-License-Identifier: MIT
// The filter of index keys: codes of 8 bits and the bounds of every page that holds new keys, of
// ragged keys of every group of 16 rows. Behind the prologue.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/params.h"

namespace msa::cuda::common::quantize_index {

inline constexpr int kGroupRows = 16;  // of ragged keys

/// Codes as they lie in memory: pages, or one of ragged rows.
struct CodeRows {
  std::int8_t* data = nullptr;
  std::int64_t stride_page = 0;
  std::int64_t stride_token = 0;
  std::int64_t stride_head = 0;
};

/// {scale, error, norm} of a page or group and head.
struct Bounds {
  float* data = nullptr;
  std::int64_t stride_group = 0;
  std::int64_t stride_head = 0;
  std::int64_t stride_item = 0;
};

struct Params {
  BatchParams batch{};
  const RequestRecord* requests = nullptr;
  KeyRows keys{};
  CodeRows codes{};
  Bounds bounds{};
  int heads = 1;
  int dim = 0;
};

/// `storage`: of the keys.
void launch(Storage storage, const Params& params, cudaStream_t stream);

}  // namespace msa::cuda::common::quantize_index
