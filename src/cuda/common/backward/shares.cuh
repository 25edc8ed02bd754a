// SPDX-License-Identifier: MIT
// In which order a row of a share of dq is stored: as the threads hold it that make it. A row is
// parts of so many columns, one warp's each; in a part the four threads of a quad lie side by side,
// each with the two neighbours that it has of every 8 columns.
// A part whose steps have a negative size has numbers that are not finite: code 0, which no step
// has.
#pragma once

#include "cuda/common/steps.cuh"

namespace msa::cuda::common::backward {

/// Where the first item of thread `member` of the quad lies in a row; the others follow.
__device__ __forceinline__ int share_offset(int part, int part_dims, int member) {
  return part * part_dims + member * (part_dims / 4);
}

/// The column of an item; items come in pairs of neighbours.
__device__ __forceinline__ int share_column(int offset, int part_dims) {
  const int part = offset / part_dims;
  const int inside = offset - part * part_dims;
  const int member = inside / (part_dims / 4);
  const int own = inside - member * (part_dims / 4);
  return part * part_dims + own / 2 * 8 + member * 2 + own % 2;
}

/// Steps of a part with numbers that are not finite.
__device__ __forceinline__ std::uint32_t pack_odd(float lo, float hi, float per_one) {
  const bool numbers[2] = {fabsf(lo) < INFINITY, fabsf(hi) < INFINITY};
  const std::uint32_t pair = pack_steps(numbers[0] ? lo : 0.0f, numbers[1] ? hi : 0.0f, per_one);
  return pair & ((numbers[0] ? 0xffffu : 0u) | (numbers[1] ? 0xffff0000u : 0u));
}

__device__ __forceinline__ float2 unpack_odd(std::uint32_t pair) {
  const float2 values = unpack_steps(pair);
  return make_float2((pair & 0xffffu) == 0 ? NAN : values.x,
                     (pair & 0xffff0000u) == 0 ? NAN : values.y);
}

}  // namespace msa::cuda::common::backward
