// SPDX-License-Identifier: MIT
// Where a structure begins in dynamic shared memory.
#pragma once

#include <cstdint>

#include "cuda/common/ptx/barrier.cuh"

namespace msa::cuda::common {

/// The first multiple of kBytes in dynamic shared memory, which must hold kBytes more than it is
/// used for. Written so that the compiler still knows that it is shared memory: through an integer,
/// every access behind it becomes a generic one.
template <int kBytes>
__device__ __forceinline__ std::uint8_t* align_shared(std::uint8_t* raw) {
  static_assert((kBytes & (kBytes - 1)) == 0, "a power of two");
  return raw + (-ptx::cvta_to_shared(raw) & (kBytes - 1));
}

}  // namespace msa::cuda::common
