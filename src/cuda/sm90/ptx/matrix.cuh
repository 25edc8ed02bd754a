// SPDX-License-Identifier: MIT
// The warp-level matrix instructions of common/ptx, beside stmatrix (PTX ISA 9.7.14).
#pragma once

#include <cstdint>

#include "cuda/common/ptx/matrix.cuh"
#include "cuda/sm90/ptx/barrier.cuh"

namespace msa::cuda::sm90::ptx {

using common::ptx::ldmatrix_x4;
using common::ptx::ldmatrix_x4_trans;
using common::ptx::mma_m16n8k16;
using common::ptx::mma_m16n8k32_s8;

__device__ __forceinline__ void stmatrix_x4(void* smem_row, const std::uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   cvta_to_shared(smem_row)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

}  // namespace msa::cuda::sm90::ptx
