// SPDX-License-Identifier: MIT
// Attention for tensors that the copy engine cannot take (addresses or strides that are no
// multiples of 16 bytes). Every query head reads exactly its own visible, listed keys, item by
// item; slow.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/params.h"

namespace msa::cuda::common::exact {

/// Keys or values as the caller gave them; strides count items.
struct KeyView {
  const void* data = nullptr;  // [N, Hkv, D] or pages [P, S, Hkv, D]
  std::int64_t stride_page = 0;
  std::int64_t stride_token = 0;
  std::int64_t stride_head = 0;
};

struct Params {
  BatchParams batch{};
  const RequestRecord* requests = nullptr;  // [B]
  Storage storage = Storage::Bf16;
  int head_dim = 128;
  int heads_kv = 1;
  int group = 1;
  Rows<const void> q{};  // [T, Hq, D]
  KeyView k{};
  KeyView v{};
  Lists lists{};  // k = 0: every visible key
  RowsOut to{};
  float scale = 1.0f;
};

void launch(const Params& params, int ctas, cudaStream_t stream);

}  // namespace msa::cuda::common::exact
