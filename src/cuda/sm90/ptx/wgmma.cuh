// SPDX-License-Identifier: MIT
// Warpgroup matrix multiply (wgmma, PTX ISA 9.7.15): m64n128k16, m64n64k16, m64n16k16 and
// m64n8k16, 16-bit inputs, f32 accumulation, A from shared memory (ss) or registers (rs);
// m64n128k32 of signed bytes. The macros at the top spell the operand lists, once per width. Issue,
// commit and wait in one straight line: accumulators in flight across a branch make ptxas serialise
// them (C75xx).
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
#define MSA_WGMMA_D8 "{%0, %1, %2, %3, %4, %5, %6, %7}, "
#define MSA_WGMMA_D4 "{%0, %1, %2, %3}, "
#define MSA_WGMMA_OUT64_AS(C) \
  C(d[0]), C(d[1]), C(d[2]), C(d[3]), C(d[4]), C(d[5]), C(d[6]), \
  C(d[7]), C(d[8]), C(d[9]), C(d[10]), C(d[11]), C(d[12]), C(d[13]), \
  C(d[14]), C(d[15]), C(d[16]), C(d[17]), C(d[18]), C(d[19]), C(d[20]), \
  C(d[21]), C(d[22]), C(d[23]), C(d[24]), C(d[25]), C(d[26]), C(d[27]), \
  C(d[28]), C(d[29]), C(d[30]), C(d[31]), C(d[32]), C(d[33]), C(d[34]), \
  C(d[35]), C(d[36]), C(d[37]), C(d[38]), C(d[39]), C(d[40]), C(d[41]), \
  C(d[42]), C(d[43]), C(d[44]), C(d[45]), C(d[46]), C(d[47]), C(d[48]), \
  C(d[49]), C(d[50]), C(d[51]), C(d[52]), C(d[53]), C(d[54]), C(d[55]), \
  C(d[56]), C(d[57]), C(d[58]), C(d[59]), C(d[60]), C(d[61]), C(d[62]), \
  C(d[63])
#define MSA_WGMMA_OUT64 MSA_WGMMA_OUT64_AS("+f")
#define MSA_WGMMA_OUT32 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
  "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), \
  "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), \
  "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
  "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])

#define MSA_WGMMA_OUT8 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])

#define MSA_WGMMA_OUT4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])

#define MSA_WGMMA_SS(N, TYPE, DREGS, OUTS, A, B, ACC, TA, TB)                                          \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ACC ", 0;\n"                                      \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " " DREGS               \
               "%" #A ", %" #B ", p, 1, 1, %" #TA ", %" #TB ";\n}"                                     \
               : OUTS                                                                                  \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kMajorA)),    \
                 "n"(static_cast<int>(kMajorB)))
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

/// D[64 x 128] (+)= A[64 x 16] * B[16 x 128]; both by descriptor.
template <class T, Major kMajorA, Major kMajorB>
__device__ __forceinline__ void wgmma_m64n128k16_ss(float (&d)[64], std::uint64_t a,
                                                    std::uint64_t b, bool accumulate) {
  static_assert(kIsWgmmaItem<T>, "T is a 16-bit float");
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    MSA_WGMMA_SS(128, "bf16", MSA_WGMMA_D64, MSA_WGMMA_OUT64, 64, 65, 66, 67, 68);
  } else {
    MSA_WGMMA_SS(128, "f16", MSA_WGMMA_D64, MSA_WGMMA_OUT64, 64, 65, 66, 67, 68);
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

/// D[64 x 64] (+)= A[64 x 16] * B[16 x 64]; both by descriptor.
template <class T, Major kMajorA, Major kMajorB>
__device__ __forceinline__ void wgmma_m64n64k16_ss(float (&d)[32], std::uint64_t a, std::uint64_t b,
                                                   bool accumulate) {
  static_assert(kIsWgmmaItem<T>, "T is a 16-bit float");
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    MSA_WGMMA_SS(64, "bf16", MSA_WGMMA_D32, MSA_WGMMA_OUT32, 32, 33, 34, 35, 36);
  } else {
    MSA_WGMMA_SS(64, "f16", MSA_WGMMA_D32, MSA_WGMMA_OUT32, 32, 33, 34, 35, 36);
  }
}

/// D[64 x 16] (+)= A[64 x 16] * B[16 x 16]; both by descriptor.
template <class T, Major kMajorA, Major kMajorB>
__device__ __forceinline__ void wgmma_m64n16k16_ss(float (&d)[8], std::uint64_t a, std::uint64_t b,
                                                   bool accumulate) {
  static_assert(kIsWgmmaItem<T>, "T is a 16-bit float");
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    MSA_WGMMA_SS(16, "bf16", MSA_WGMMA_D8, MSA_WGMMA_OUT8, 8, 9, 10, 11, 12);
  } else {
    MSA_WGMMA_SS(16, "f16", MSA_WGMMA_D8, MSA_WGMMA_OUT8, 8, 9, 10, 11, 12);
  }
}

/// D[64 x 8] (+)= A[64 x 16] * B[16 x 8]; both by descriptor.
template <class T, Major kMajorA, Major kMajorB>
__device__ __forceinline__ void wgmma_m64n8k16_ss(float (&d)[4], std::uint64_t a, std::uint64_t b,
                                                  bool accumulate) {
  static_assert(kIsWgmmaItem<T>, "T is a 16-bit float");
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    MSA_WGMMA_SS(8, "bf16", MSA_WGMMA_D4, MSA_WGMMA_OUT4, 4, 5, 6, 7, 8);
  } else {
    MSA_WGMMA_SS(8, "f16", MSA_WGMMA_D4, MSA_WGMMA_OUT4, 4, 5, 6, 7, 8);
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

/// D[64 x 128] (+)= A[64 x 32] * B[32 x 128] of signed bytes, exact; A in registers, B K-major.
__device__ __forceinline__ void wgmma_m64n128k32_s8_rs(std::int32_t (&d)[64],
                                                       const std::uint32_t* a, std::uint64_t b,
                                                       bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 " MSA_WGMMA_D64
      "{%64, %65, %66, %67}, %68, p;\n}"
      : MSA_WGMMA_OUT64_AS("+r")
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

#undef MSA_WGMMA_RS
#undef MSA_WGMMA_SS
#undef MSA_WGMMA_OUT4
#undef MSA_WGMMA_OUT8
#undef MSA_WGMMA_OUT32
#undef MSA_WGMMA_OUT64
#undef MSA_WGMMA_OUT64_AS
#undef MSA_WGMMA_D4
#undef MSA_WGMMA_D8
#undef MSA_WGMMA_D32
#undef MSA_WGMMA_D64

/// The width by its accumulator: 64 registers are n128, 32 are n64, 8 are n16, 4 are n8.
template <class T, Major kMajorA, Major kMajorB, int kAccumulators>
__device__ __forceinline__ void wgmma_ss(float (&d)[kAccumulators], std::uint64_t a,
                                         std::uint64_t b, bool accumulate) {
  static_assert(
      kAccumulators == 64 || kAccumulators == 32 || kAccumulators == 8 || kAccumulators == 4,
      "n128, n64, n16 or n8");
  if constexpr (kAccumulators == 64) {
    wgmma_m64n128k16_ss<T, kMajorA, kMajorB>(d, a, b, accumulate);
  } else if constexpr (kAccumulators == 32) {
    wgmma_m64n64k16_ss<T, kMajorA, kMajorB>(d, a, b, accumulate);
  } else if constexpr (kAccumulators == 8) {
    wgmma_m64n16k16_ss<T, kMajorA, kMajorB>(d, a, b, accumulate);
  } else {
    wgmma_m64n8k16_ss<T, kMajorA, kMajorB>(d, a, b, accumulate);
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

template <int kAccumulators>
__device__ __forceinline__ void keep_accumulator(std::int32_t (&d)[kAccumulators]) {
#pragma unroll
  for (int i = 0; i < kAccumulators; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

}  // namespace msa::cuda::sm90::ptx
