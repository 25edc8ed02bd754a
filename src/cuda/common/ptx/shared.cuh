// SPDX-License-Identifier: MIT
// Addresses of shared memory, as instructions take them.
#pragma once

#include <cstdint>

namespace msa::cuda::common::ptx {

__device__ __forceinline__ std::uint32_t cvta_to_shared(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

}  // namespace msa::cuda::common::ptx
