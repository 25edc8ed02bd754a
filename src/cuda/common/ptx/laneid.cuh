// SPDX-License-Identifier: MIT
// The lane of the calling thread (PTX ISA 10, %laneid).
#pragma once

namespace msa::cuda::common::ptx {

/// Read anew wherever it stands: what is made of it does not wait in registers over a loop.
__device__ __forceinline__ int laneid() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

}  // namespace msa::cuda::common::ptx
