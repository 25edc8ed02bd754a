// SPDX-License-Identifier: MIT
// Selection alone: one CTA a (query row, head).
#pragma once

#include "cuda/common/decode/request.cuh"
#include "cuda/common/decode/select.cuh"
#include "cuda/common/rows.cuh"

namespace msa::cuda::common::decode {

__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(const __grid_constant__ SelectParams p) {
  extern __shared__ uint4 scratch[];
  __shared__ SelectStorage storage;
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const int token_slots = p.token_slots;
  const int head = blockIdx.x;
  const int request = blockIdx.y / token_slots;
  const int token = blockIdx.y % token_slots;
  const RequestRecord r = p.batch.batch > 0 ? p.records[request] : RequestRecord{};
  for (std::int64_t row = padding_begin(p.batch) + blockIdx.y; row < p.batch.total_q;
       row += gridDim.y) {
    store_empty_selection(p, row, head, threadIdx.x);
    if (p.candidates.data != nullptr && threadIdx.x == 0)
      common::item_of(p.candidates, row, head) = 0;
  }
  if (token >= r.seqlen_q) return;
  const SelectRow row = select_row(p, r, token, head);
  select_topk(storage, scratch, segment_blocks(p.max_blocks), row, p.topk, p.lanes, threadIdx.x);
  store_selection(p, storage, r.q_begin + token, head, row.first, threadIdx.x);
  if (p.candidates.data != nullptr && threadIdx.x == 0)
    common::item_of(p.candidates, r.q_begin + token, head) = -1;
}

/// -inf everywhere: what the scoring kernel does not reach is not visible.
__global__ void __launch_bounds__(kSelectThreads)
    fill_kernel(const __grid_constant__ Slots<float> scores, std::int64_t total, int heads,
                std::int64_t blocks) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kSelectThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kSelectThreads + threadIdx.x;
       i < total * heads * blocks; i += step) {
    const std::int64_t row = i / (heads * blocks);
    const std::int64_t rest = i - row * heads * blocks;
    common::slots_of(scores, row, rest / blocks)[rest % blocks * scores.stride_slot] = -INFINITY;
  }
}

}  // namespace msa::cuda::common::decode
