// SPDX-License-Identifier: MIT
// Which page sizes the copy engine's boxes can serve; see sm90/tile/key_box.cuh.
#pragma once

#include <cstdint>
#include <string>

namespace msa::cuda {

/// Why pages of this size do not fit steps of `block` keys; empty: they do.
inline std::string page_rejects(std::int64_t page_size, int block) {
  const bool fits = page_size % block == 0 || (page_size >= 16 && block % page_size == 0);
  if (page_size == 0 || fits) return "";
  return "pages hold 16, 32 or 64 tokens or a multiple of " + std::to_string(block) + ", not " +
         std::to_string(page_size);
}

}  // namespace msa::cuda
