// SPDX-License-Identifier: MIT
// Numbers become codes of 8 and 4 bits, bit for bit as on the CPU: half to even, what is too large
// becomes the largest code.
#pragma once

#include <cstdint>

#include "cuda/common/ptx/math.cuh"

namespace msa::cuda::common {

/// Four codes of e4m3; NaN becomes 0x7f, whatever its sign.
__device__ __forceinline__ std::uint32_t e4m3_codes(const float (&x)[4]) {
  std::uint32_t codes = static_cast<std::uint32_t>(ptx::cvt_e4m3x2(x[0], x[1])) |
                        static_cast<std::uint32_t>(ptx::cvt_e4m3x2(x[2], x[3])) << 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t byte = 0xffu << (8 * i);
    if (isnan(x[i])) codes = (codes & ~byte) | (0x7f7f7f7fu & byte);
  }
  return codes;
}

__device__ __forceinline__ std::uint8_t e4m3_code(float x) {
  return isnan(x) ? std::uint8_t{0x7f} : static_cast<std::uint8_t>(ptx::cvt_e4m3x2(x, 0.0f));
}

/// A code of e2m1 in the low four bits.
__device__ __forceinline__ std::uint32_t e2m1_code(float x) {
  const float y = fabsf(x);
  const std::uint32_t code = (y > 0.25f ? 1u : 0u) + (y >= 0.75f ? 1u : 0u) +
                             (y > 1.25f ? 1u : 0u) + (y >= 1.75f ? 1u : 0u) + (y > 2.5f ? 1u : 0u) +
                             (y >= 3.5f ? 1u : 0u) + (y > 5.0f ? 1u : 0u);
  return code | (__float_as_uint(x) >> 31) << 3;
}

}  // namespace msa::cuda::common
