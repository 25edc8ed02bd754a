// SPDX-License-Identifier: MIT
// What GPUs of one host tell each other: a word that is released and acquired at the scope of the
// system (PTX ISA 8.8), and what a wait for it needs. One instruction a function, named after it.
#pragma once

#include <cstdint>

namespace msa::cuda::common::ptx {

/// What this thread wrote or was told before is seen by who acquires the word.
__device__ __forceinline__ void st_release_sys(std::uint32_t* word, std::uint32_t x) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(word), "r"(x) : "memory");
}

__device__ __forceinline__ std::uint32_t ld_acquire_sys(const std::uint32_t* word) {
  std::uint32_t x;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(x) : "l"(word) : "memory");
  return x;
}

/// 16 bytes to or from another GPU, of which each half is written and read at once.
__device__ __forceinline__ void st_volatile(uint4* to, const uint4& x) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.x), "r"(x.y),
               "r"(x.z), "r"(x.w)
               : "memory");
}
__device__ __forceinline__ uint4 ld_volatile(const uint4* from) {
  uint4 x;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from)
               : "memory");
  return x;
}

/// Nanoseconds since some time.
__device__ __forceinline__ std::uint64_t globaltimer() {
  std::uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

/// Ends the launch with an error.
__device__ __forceinline__ void trap() { asm volatile("trap;"); }

}  // namespace msa::cuda::common::ptx
