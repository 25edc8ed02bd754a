// SPDX-License-Identifier: MIT
// A request's record before the prologue is done, where lengths alone make it: paged keys, ragged
// ones with cu_seqlens_k, or so few requests that adding up their lengths takes no time. Kernels
// then start their work beside the prologue, whose checks say the same.
#pragma once

#include "cuda/common/ptx/barrier.cuh"
#include "cuda/common/ptx/cp_async.cuh"
#include "cuda/geometry.cuh"

namespace msa::cuda::common::decode {

/// Whether records need no prologue. The same for all requests of a batch: a warp may read several.
__device__ __forceinline__ bool records_are_early(const BatchParams& batch) {
  constexpr int kSummedRequests = 16;
  return batch.page_size != 0 || batch.cu_seqlens_k.data != nullptr ||
         batch.batch <= kSummedRequests;
}

/// The record of `request`; an empty one in an empty batch. Waits for the prologue only where it
/// must; either way the caller waits before it depends on earlier launches for anything else.
__device__ __forceinline__ RequestRecord early_request(const BatchParams& batch,
                                                       const RequestRecord* records, int request) {
  if (batch.batch == 0) return RequestRecord{};
  if (!records_are_early(batch)) {
    ptx::griddepcontrol_wait();
    return records[request];
  }
  std::int64_t k_begin = 0;
  if (batch.page_size == 0 && batch.cu_seqlens_k.data == nullptr) {
#pragma unroll 1
    for (int b = 0; b < request; ++b) k_begin += rows_of(batch, b);
  }
  bool length_fault = false;  // the prologue reports them
  bool offset_fault = false;
  return load_request(batch, request, k_begin, &length_fault, &offset_fault);
}

/// One warp brings a request's row of the page table into L1, up to 8,192 pages of it: ids are
/// looked up one after the other later.
__device__ __forceinline__ void touch_pages(const BatchParams& batch, int request, int lane) {
  constexpr int kLine = 32;  // ids
  constexpr int kMostPages = 8192;
  const int pages =
      batch.batch == 0 ? 0 : static_cast<int>(clamp64(batch.page_columns, 0, kMostPages));
#pragma unroll 1
  for (int page = lane * kLine; page < pages; page += 32 * kLine)
    ptx::touch(page_address(batch, request, page));
  __syncwarp();
}

}  // namespace msa::cuda::common::decode
