// SPDX-License-Identifier: MIT
// A request's record before the prologue is done, where its lengths alone make it: paged keys, or
// ragged ones with cu_seqlens_k. Kernels then start their work beside the prologue, whose checks
// say the same.
#pragma once

#include "cuda/geometry.cuh"
#include "cuda/sm90/ptx/barrier.cuh"

namespace msa::cuda::sm90::decode {

/// The record of `request`; an empty one in an empty batch. Waits for the prologue only where it
/// must; either way the caller waits before it depends on earlier launches for anything else.
__device__ __forceinline__ RequestRecord early_request(const BatchParams& batch,
                                                       const RequestRecord* records, int request) {
  if (batch.batch == 0) return RequestRecord{};
  if (batch.page_size == 0 && batch.cu_seqlens_k.data == nullptr) {
    ptx::griddepcontrol_wait();
    return records[request];
  }
  bool length_fault = false;  // the prologue reports them
  bool offset_fault = false;
  return load_request(batch, request, 0, &length_fault, &offset_fault);
}

}  // namespace msa::cuda::sm90::decode
