// SPDX-License-Identifier: MIT
// Named barriers (PTX ISA 9.7.13).
#pragma once

namespace msa::cuda::common::ptx {

/// Named barrier `id` (0 is __syncthreads) of `threads` threads, a multiple of 32: arrive and wait.
__device__ __forceinline__ void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace msa::cuda::common::ptx
