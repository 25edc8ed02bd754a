// SPDX-License-Identifier: MIT
// The words of CUDA C++ that g++ does not know, included in front of every file with device code:
// qualifiers, indices, and the intrinsics that kernels call by CUDA's own names.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "thread.h"

#undef __device__
#undef __global__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __align__
#undef __shared__
#undef __constant__
#define __device__
#define __global__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)
// One CTA runs at a time. Dynamic shared memory, which is extern, CMakeLists.txt rewrites.
#define __shared__ static
#define __constant__

#define threadIdx (::emulator::self->index)
#define blockIdx (::emulator::cta->index)
#define gridDim (::emulator::cta->grid)
#define blockDim (::emulator::cta->threads)

using std::isinf;
using std::isnan;

// ---- of a warp and of a CTA

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = emulator::lane() / width * width;
  return emulator::shuffle(mask, value, first + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return emulator::shuffle(mask, value, emulator::lane() ^ bits);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int distance) {
  const int from = emulator::lane() - distance;
  return emulator::shuffle(mask, value, from < 0 ? emulator::lane() : from);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int distance) {
  const int from = emulator::lane() + distance;
  return emulator::shuffle(mask, value, from > 31 ? emulator::lane() : from);
}

template <class T>
T __reduce_max_sync(unsigned mask, T value) {
  return emulator::reduce(mask, value, [](T a, T b) { return std::max(a, b); });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value) {
  return emulator::reduce(mask, value, [](T a, T b) { return std::min(a, b); });
}
template <class T>
T __reduce_add_sync(unsigned mask, T value) {
  return emulator::reduce(mask, value, [](T a, T b) { return a + b; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return emulator::reduce(mask, value, [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __ballot_sync(unsigned mask, bool value) {
  return __reduce_or_sync(mask, value ? 1u << emulator::lane() : 0u);
}
inline int __any_sync(unsigned mask, int value) { return __ballot_sync(mask, value != 0) != 0; }
inline int __all_sync(unsigned mask, int value) { return __ballot_sync(mask, value == 0) == 0; }
inline unsigned __match_any_sync(unsigned mask, unsigned value) {
  const std::uint64_t mine = value;
  const emulator::Words* all = emulator::exchange(mask, &mine, 1);
  unsigned same = 0;
  for (int i = 0; i < 32; ++i)
    if ((mask >> i & 1) != 0 && all[i][0] == mine) same |= 1u << i;
  return same;
}
inline void __syncwarp(unsigned mask = ~0u) {
  const std::uint64_t nothing = 0;
  emulator::exchange(mask, &nothing, 1);
}
inline void __syncthreads() {
  const dim3 threads = emulator::cta->threads;
  emulator::barrier(0, static_cast<int>(threads.x * threads.y * threads.z));
}
inline int __syncthreads_or(int value) {
  static int any = 0;
  if (value != 0) any = 1;
  __syncthreads();
  const int result = any;
  __syncthreads();
  any = 0;
  __syncthreads();
  return result;
}
inline void __threadfence() {}

// ---- memory

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
void __stcg(T* to, T value) {
  *to = value;
}
template <class T>
void __stwb(T* to, T value) {
  *to = value;
}
template <class T, class U>
T atomicAdd(T* at, U value) {
  const T before = *at;
  *at = static_cast<T>(before + value);
  return before;
}
template <class T, class U>
T atomicOr(T* at, U value) {
  const T before = *at;
  *at = before | static_cast<T>(value);
  return before;
}
template <class T, class U>
T atomicMin(T* at, U value) {
  const T before = *at;
  *at = std::min(before, static_cast<T>(value));
  return before;
}
template <class T, class U>
T atomicMax(T* at, U value) {
  const T before = *at;
  *at = std::max(before, static_cast<T>(value));
  return before;
}

// ---- numbers: as the functions are documented, correctly rounded where they are fast

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using Common = std::common_type_t<A, B>;
  return std::min(static_cast<Common>(a), static_cast<Common>(b));
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using Common = std::common_type_t<A, B>;
  return std::max(static_cast<Common>(a), static_cast<Common>(b));
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
/// The n-th set bit from `base` on.
inline unsigned __fns(unsigned mask, unsigned base, int n) {
  for (unsigned bit = base; bit < 32; ++bit)
    if ((mask >> bit & 1) != 0 && --n == 0) return bit;
  return ~0u;
}
/// Bytes of the eight of a and b: nibble i of the selectors names the one that becomes byte i; with
/// bit 3 set its sign alone, eight times.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selectors) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned selector = selectors >> (4 * i) & 15;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (selector & 7)) & 0xff);
    if ((selector & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline int __vimax3_s32(int a, int b, int c) { return std::max({a, b, c}); }

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline double __ull2double_rn(unsigned long long x) { return static_cast<double>(x); }

// Never fused with what stands around them: CMakeLists.txt compiles with -ffp-contract=off.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
