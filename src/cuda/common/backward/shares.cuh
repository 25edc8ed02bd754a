// SPDX-License-Identifier: MIT
// In which order a row of a share of dq is stored: as the threads hold it that make it. A row is
// parts of so many columns, one warp's each; in a part the four threads of a quad lie side by side,
// each with the two neighbours that it has of every 8 columns.
#pragma once

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

}  // namespace msa::cuda::common::backward
