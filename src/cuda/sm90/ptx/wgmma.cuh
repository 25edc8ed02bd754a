// SPDX-License-Identifier: MIT
// Warpgroup matrix multiply (wgmma, PTX ISA 9.7.15): m64n128k16 and m64n64k16, 16-bit inputs, f32
// accumulation, A from shared memory (ss) or registers (rs). The macros at the top spell the
// operand lists, once per width. Issue, commit and wait in one straight line: accumulators in
// flight across a branch make ptxas serialise them (C75xx).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace msa::cuda::sm90::ptx {

/// How an operand lies in shared memory: contiguous along the contraction (K) or along its own rows
/// (MN).
enum class Major : int { K = 0, MN = 1 };

// clang-format off
#define MSA_WGMMA_D64 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, " \
  "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63}, "
#define MSA_WGMMA_D32 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
#define MSA_WGMMA_OUT64 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
  "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), \
  "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), \
  "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
  "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), \
  "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), \
  "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), \
  "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
  "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), \
  "+f"(d[63])
#define MSA_WGMMA_OUT32 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
  "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), \
  "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), \
  "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
  "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])

#define MSA_WGMMA_SS(N, TYPE, DREGS, OUTS, A, B, ACC, TB)                                              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ACC ", 0;\n"                                      \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " " DREGS               \
               "%" #A ", %" #B ", p, 1, 1, 0, %" #TB ";\n}"                                            \
               : OUTS                                                                                  \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kMajorB)))
#define MSA_WGMMA_RS(N, TYPE, DREGS, OUTS, A0, A1, A2, A3, B, ACC, TB)                                 \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ACC ", 0;\n"                                      \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " " DREGS               \
               "{%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, %" #TB ";\n}"               \
               : OUTS                                                                                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)), \
                 "n"(static_cast<int>(kMajorB)))
// clang-format on

template <class T>
inline constexpr bool kIsWgmmaItem = std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>;

/// D[64 x 128] (+)= A[64 x 16] * B[16 x 128]; A K-major, both by descriptor.
template <class T, Major kMajorB>
__device__ __forceinline__ void wgmma_m64n128k16_ss(float (&d)[64], std::uint64_t a,
                                                    std::uint64_t b, bool accumulate) {
  static_assert(kIsWgmmaItem<T>, "T is a 16-bit float");
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    MSA_WGMMA_SS(128, "bf16", MSA_WGMMA_D64, MSA_WGMMA_OUT64, 64, 65, 66, 67);
  } else {
    MSA_WGMMA_SS(128, "f16", MSA_WGMMA_D64, MSA_WGMMA_OUT64, 64, 65, 66, 67);
  }
}

/// D[64 x 128] (+)= A[64 x 16] * B[16 x 128]; A in registers.
template <class T, Major kMajorB>
__device__ __forceinline__ void wgmma_m64n128k16_rs(float (&d)[64], const std::uint32_t* a,
                                                    std::uint64_t b, bool accumulate) {
  static_assert(kIsWgmmaItem<T>, "T is a 16-bit float");
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    MSA_WGMMA_RS(128, "bf16", MSA_WGMMA_D64, MSA_WGMMA_OUT64, 64, 65, 66, 67, 68, 69, 70);
  } else {
    MSA_WGMMA_RS(128, "f16", MSA_WGMMA_D64, MSA_WGMMA_OUT64, 64, 65, 66, 67, 68, 69, 70);
  }
}

/// D[64 x 64] (+)= A[64 x 16] * B[16 x 64]; A K-major, both by descriptor.
template <class T, Major kMajorB>
__device__ __forceinline__ void wgmma_m64n64k16_ss(float (&d)[32], std::uint64_t a, std::uint64_t b,
                                                   bool accumulate) {
  static_assert(kIsWgmmaItem<T>, "T is a 16-bit float");
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    MSA_WGMMA_SS(64, "bf16", MSA_WGMMA_D32, MSA_WGMMA_OUT32, 32, 33, 34, 35);
  } else {
    MSA_WGMMA_SS(64, "f16", MSA_WGMMA_D32, MSA_WGMMA_OUT32, 32, 33, 34, 35);
  }
}

/// D[64 x 64] (+)= A[64 x 16] * B[16 x 64]; A in registers.
template <class T, Major kMajorB>
__device__ __forceinline__ void wgmma_m64n64k16_rs(float (&d)[32], const std::uint32_t* a,
                                                   std::uint64_t b, bool accumulate) {
  static_assert(kIsWgmmaItem<T>, "T is a 16-bit float");
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    MSA_WGMMA_RS(64, "bf16", MSA_WGMMA_D32, MSA_WGMMA_OUT32, 32, 33, 34, 35, 36, 37, 38);
  } else {
    MSA_WGMMA_RS(64, "f16", MSA_WGMMA_D32, MSA_WGMMA_OUT32, 32, 33, 34, 35, 36, 37, 38);
  }
}

#undef MSA_WGMMA_RS
#undef MSA_WGMMA_SS
#undef MSA_WGMMA_OUT32
#undef MSA_WGMMA_OUT64
#undef MSA_WGMMA_D32
#undef MSA_WGMMA_D64

/// The width by its accumulator: 64 registers are n128, 32 are n64.
template <class T, Major kMajorB, int kAccumulators>
__device__ __forceinline__ void wgmma_ss(float (&d)[kAccumulators], std::uint64_t a,
                                         std::uint64_t b, bool accumulate) {
  static_assert(kAccumulators == 64 || kAccumulators == 32, "n128 or n64");
  if constexpr (kAccumulators == 64) {
    wgmma_m64n128k16_ss<T, kMajorB>(d, a, b, accumulate);
  } else {
    wgmma_m64n64k16_ss<T, kMajorB>(d, a, b, accumulate);
  }
}

template <class T, Major kMajorB, int kAccumulators>
__device__ __forceinline__ void wgmma_rs(float (&d)[kAccumulators], const std::uint32_t* a,
                                         std::uint64_t b, bool accumulate) {
  static_assert(kAccumulators == 64 || kAccumulators == 32, "n128 or n64");
  if constexpr (kAccumulators == 64) {
    wgmma_m64n128k16_rs<T, kMajorB>(d, a, b, accumulate);
  } else {
    wgmma_m64n64k16_rs<T, kMajorB>(d, a, b, accumulate);
  }
}

/// Orders register and shared-memory accesses before the first wgmma that uses them.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most `kPending` committed groups are still running.
template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// No instruction: uses of the accumulator stay behind this point. Call after the wait where the
/// accumulator is read as other than float, or the compiler moves the conversions in front of it
/// and ptxas inserts a wait of its own (C7517).
template <int kAccumulators>
__device__ __forceinline__ void keep_accumulator(float (&d)[kAccumulators]) {
#pragma unroll
  for (int i = 0; i < kAccumulators; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

}  // namespace msa::cuda::sm90::ptx
