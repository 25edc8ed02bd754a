// SPDX-License-Identifier: MIT
// Pages of new keys: of a request those that hold positions from `offset` of its record on. Where
// two of them are one page of the cache, the later one has the last word: by request, then by
// column of the page table.
#pragma once

#include <cstdint>

#include "cuda/common/warp.cuh"
#include "cuda/geometry.cuh"

namespace msa::cuda::common {

/// Columns of the page table whose pages hold new keys: [begin, end).
struct Columns {
  int begin = 0;
  int end = 0;
};

__device__ __forceinline__ Columns new_columns(const RequestRecord& r, int page_size) {
  if (r.offset >= r.seqlen_k) return {};
  return {static_cast<int>(r.offset / page_size),
          static_cast<int>(ceil_div(r.seqlen_k, page_size))};
}

namespace cta {

/// Calls visit(record, column) for each later column of new keys whose page is `page`, in any
/// order, each in one thread. Every thread of the CTA calls it.
template <int kThreads, class Visit>
__device__ __forceinline__ void for_each_later(const BatchParams& batch,
                                               const RequestRecord* requests, int own,
                                               int own_column, int page, const Visit& visit) {
  constexpr int kFew = 4;  // columns that a lane takes by itself: decode has one or two
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const auto look = [&](int b, int column) {
    if (load_page(batch, b, column) == page) visit(requests[b], column);
  };
  for (int first = own; first < batch.batch; first += 32) {
    const int b = first + lane;
    Columns columns;
    if (b < batch.batch) columns = new_columns(requests[b], batch.page_size);
    if (b == own) columns.begin = own_column + 1;
    if ((first - own) / 32 % (kThreads / 32) == warp) {
      for (int c = columns.begin; c < min(columns.end, columns.begin + kFew); ++c) look(b, c);
    }
    unsigned many = __ballot_sync(kAllLanes, columns.end - columns.begin > kFew);
    for (; many != 0; many &= many - 1) {
      const int owner = __ffs(static_cast<int>(many)) - 1;
      const int begin = __shfl_sync(kAllLanes, columns.begin, owner) + kFew;
      const int end = __shfl_sync(kAllLanes, columns.end, owner);
      for (int c = begin + static_cast<int>(threadIdx.x); c < end; c += kThreads)
        look(first + owner, c);
    }
  }
}

}  // namespace cta
}  // namespace msa::cuda::common
