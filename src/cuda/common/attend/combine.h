// SPDX-License-Identifier: MIT
// Joins the partial outputs of tiles that several CTAs shared, in split order: the same bits every
// time.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/common/attend/params.h"

namespace msa::cuda::common::attend {

struct CombineParams {
  int splits = 1;
  std::int64_t rows = 0;  // T * heads
  int heads = 1;          // Hq
  int head_dim = 128;
  const float* part_out = nullptr;  // [splits, T, Hq, D]
  const float* part_lse = nullptr;  // [splits, T, Hq]
  Storage storage = Storage::Bf16;  // of outputs that are not f32
  RowsOut to{};
};

void launch_combine(const CombineParams& params, cudaStream_t stream);

}  // namespace msa::cuda::common::attend
