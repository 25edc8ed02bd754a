// SPDX-License-Identifier: MIT
// How many tokens one box of the copy engine holds; see sm90/tile/key_box.cuh.
#pragma once

#include <cuda_runtime_api.h>

namespace msa::cuda {

/// Tokens of one box for steps of `block` keys, on the host for the map and on the device for the
/// copies.
template <class Size>
__host__ __device__ constexpr int box_tokens(int block, Size page_size) {
  return page_size == 0 || page_size > block ? block : static_cast<int>(page_size);
}

}  // namespace msa::cuda
