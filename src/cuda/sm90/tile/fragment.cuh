// SPDX-License-Identifier: MIT
// Which item of a tile a thread holds: a wgmma accumulator has the order of mma.sync.
#pragma once

#include "cuda/common/ptx/matrix.cuh"
#include "cuda/common/tile/fragment.cuh"
#include "cuda/sm90/ptx/math.cuh"

namespace msa::cuda::sm90 {

using common::fragment_column;
using common::fragment_row;
using common::mask_fragment;
namespace quad = common::quad;

/// A warp's 16 rows of 16 columns become its 16 columns.
__device__ __forceinline__ void transpose(float (&d)[8]) {
#pragma unroll
  for (int block = 0; block < 4; ++block) {  // of 8 x 8; d[2 block] and its neighbour
    const std::uint32_t first = __float_as_uint(d[2 * block]);
    const std::uint32_t second = __float_as_uint(d[2 * block + 1]);
    const std::uint32_t lower = common::ptx::movmatrix_trans(ptx::prmt(first, second, 0x5410));
    const std::uint32_t upper = common::ptx::movmatrix_trans(ptx::prmt(first, second, 0x7632));
    d[2 * block] = __uint_as_float(ptx::prmt(lower, upper, 0x5410));
    d[2 * block + 1] = __uint_as_float(ptx::prmt(lower, upper, 0x7632));
  }
  // The blocks beside the diagonal change places.
#pragma unroll
  for (int x = 0; x < 2; ++x) {
    const float upper_right = d[4 + x];
    d[4 + x] = d[2 + x];
    d[2 + x] = upper_right;
  }
}

}  // namespace msa::cuda::sm90
