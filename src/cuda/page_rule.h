// SPDX-License-Identifier: MIT
// Which page sizes the copy engine's boxes can serve; see sm90/tile/key_box.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

namespace msa::cuda {

/// Tokens of one box for steps of `block` keys, on the host for the map and on the device for the
/// copies.
template <class Size>
__host__ __device__ constexpr int box_tokens(int block, Size page_size) {
  return page_size == 0 || page_size > block ? block : static_cast<int>(page_size);
}

/// Why pages of this size do not fit steps of `block` keys; empty: they do.
inline std::string page_rejects(std::int64_t page_size, int block) {
  const bool fits = page_size % block == 0 || (page_size >= 16 && block % page_size == 0);
  if (page_size == 0 || fits) return "";
  return "pages hold 16, 32 or 64 tokens or a multiple of " + std::to_string(block) + ", not " +
         std::to_string(page_size);
}

}  // namespace msa::cuda
