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
  Rows<const void> out{};   // [T, Hq, Dv]
  Rows<const float> lse{};  // [T, Hq]
};

struct Params {
  Part parts[kMaxParts]{};
  int num_parts = 1;
  std::int64_t rows = 0;  // T * Hq, below 2^31
  int heads = 1;          // Hq
  std::int64_t dim = 0;   // Dv
  Storage storage = Storage::Bf16;
  Storage out_storage = Storage::Bf16;  // storage or F32
  Rows<void> out{};                     // [T, Hq, Dv]
  Rows<float> lse{};                    // [T, Hq] or none
};

void launch(const Params& params, cudaStream_t stream);

}  // namespace msa::cuda::common::merge_states
