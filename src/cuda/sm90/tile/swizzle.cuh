// SPDX-License-Identifier: MIT
// The copy engine's swizzles are those of common/tile; layout as in tile/descriptor.cuh.
#pragma once

#include "cuda/common/tile/swizzle.cuh"

namespace msa::cuda::sm90 {

using common::swizzled_chunk;
using common::swizzled_item;

}  // namespace msa::cuda::sm90
