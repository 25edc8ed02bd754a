// SPDX-License-Identifier: MIT
// The filter of index keys: codes of 8 bits and the bounds of every page that holds new keys, of
// ragged keys of every group of 16 rows. Behind the prologue.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/params.h"

namespace msa::cuda::common::quantize_index {

inline constexpr int kGroupRows = 16;  // of ragged keys

struct Params {
  BatchParams batch{};
  const RequestRecord* requests = nullptr;
  KeyRows<const void> keys{};
  KeyRows<std::int8_t> codes{};
  FilterBounds<float> bounds{};
  int heads = 1;
  int dim = 0;
};

/// `storage`: of the keys.
void launch(Storage storage, const Params& params, cudaStream_t stream);

}  // namespace msa::cuda::common::quantize_index
