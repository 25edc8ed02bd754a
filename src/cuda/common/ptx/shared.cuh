// SPDX-License-Identifier: MIT
// Addresses of shared memory, as instructions take them.
#pragma once

#include <cstdint>

namespace msa::cuda::common::ptx {

__device__ __forceinline__ std::uint32_t cvta_to_shared(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// The same pointer, which waits in a register: else the compiler makes it anew in every turn of a
/// loop, from a special register, which takes longer than a short loop does other things. Accesses
/// behind it still know that it is shared memory.
template <class T>
__device__ __forceinline__ T* hold_shared(T* p) {
  auto address = reinterpret_cast<std::uintptr_t>(p);
  asm volatile("" : "+l"(address));
  T* held = reinterpret_cast<T*>(address);
  __builtin_assume(__isShared(held));
  return held;
}

}  // namespace msa::cuda::common::ptx
