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
  const void* q = nullptr;  // [T, Hq, D]
  std::int64_t stride_q_t = 0;
  std::int64_t stride_q_h = 0;
  KeyView k{};
  KeyView v{};
  int topk = 0;           // 0: every visible key
  IntVector block_ids{};  // [T, Hkv, k]: stride is that of the slots
  std::int64_t stride_ids_t = 0;
  std::int64_t stride_ids_h = 0;
  void* out = nullptr;  // [T, Hq, D]
  std::int64_t stride_out_t = 0;
  std::int64_t stride_out_h = 0;
  int out_f32 = 0;
  float* lse = nullptr;  // [T, Hq] or none
  std::int64_t stride_lse_t = 0;
  std::int64_t stride_lse_h = 0;
  float scale = 1.0f;
};

void launch(const Params& params, int ctas, cudaStream_t stream);

}  // namespace msa::cuda::common::exact
