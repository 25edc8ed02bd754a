// SPDX-License-Identifier: MIT
// Joins partial outputs of disjoint key sets by their lses, in the order given. A part with lse
// -inf counts for nothing, whatever its output holds; a NaN or +inf lse makes the row NaN. The
// output may be the first part itself.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/params.h"

namespace msa::cuda::common::merge_states {

inline constexpr int kMaxParts = 64;

struct Part {
  const void* out = nullptr;  // [T, Hq, Dv], the last stride is 1
  std::int64_t stride_out_t = 0;
  std::int64_t stride_out_h = 0;
  const float* lse = nullptr;  // [T, Hq]
  std::int64_t stride_lse_t = 0;
  std::int64_t stride_lse_h = 0;
};

struct Params {
  Part parts[kMaxParts]{};
  int num_parts = 1;
  std::int64_t rows = 0;  // T * Hq, below 2^31
  int heads = 1;          // Hq
  std::int64_t dim = 0;   // Dv
  Storage storage = Storage::Bf16;
  Storage out_storage = Storage::Bf16;  // storage or F32
  void* out = nullptr;                  // [T, Hq, Dv], the last stride is 1
  std::int64_t stride_out_t = 0;
  std::int64_t stride_out_h = 0;
  float* lse = nullptr;  // [T, Hq] or none
  std::int64_t stride_lse_t = 0;
  std::int64_t stride_lse_h = 0;
};

void launch(const Params& params, cudaStream_t stream);

}  // namespace msa::cuda::common::merge_states
