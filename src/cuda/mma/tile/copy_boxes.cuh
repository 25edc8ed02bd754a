// SPDX-License-Identifier: MIT
// Rows of keys or values copied by a warp, 16 bytes a lane, box by box (common/tile/key_box.cuh):
// what the copy engine does elsewhere.
#pragma once

#include <cstdint>

#include "cuda/common/ptx/cp_async.cuh"
#include "cuda/common/tile/key_box.cuh"
#include "cuda/params.h"

namespace msa::cuda::mma::warp {

/// kRows rows of kChunks chunks of 16 bytes, in boxes of 1 << shift rows: where box b begins the
/// lanes from b * kLanesPerBox on know. `keys` counts bytes. What does not exist becomes zeros.
/// place(row, chunk) is where 16 bytes go. Nobody waits here.
template <int kRows, int kLanesPerBox, int kChunks, class Place>
__device__ __forceinline__ void copy_boxes(const KeyRows<const std::uint8_t>& keys,
                                           const common::KeyBox& box, int head,
                                           const BatchParams& batch, int shift, int lane,
                                           const Place& place) {
  constexpr int kGroup = 16;             // rows that surely share a box
  constexpr int kCopied = 32 / kChunks;  // at a time
  static_assert(kGroup % kCopied == 0 && kRows % kGroup == 0);
  const bool there = box.page != common::kNoPage;
  const std::uint8_t* mine = keys.data;
  int count = 0;  // rows of this lane's box
  if (there) {
    mine += box.page * keys.stride_page + box.token * keys.stride_token + head * keys.stride_head;
    count = batch.page_size != 0
                ? 1 << shift
                : static_cast<int>(clamp64(batch.num_rows_k - box.token, 0, 1 << shift));
  }
  const int chunk = lane % kChunks;
  const int first = lane / kChunks;
  const std::int64_t step = kCopied * keys.stride_token;
  const std::uint8_t* row = nullptr;
  int left = 0;  // rows of the box from this group on
#pragma unroll 1
  for (int group = 0; group < kRows; group += kGroup) {
    // What lanes tell each other is asked for once a box: most pages hold a whole tile. Where this
    // lane's items lie in it is worked out anew each time, as registers are scarce.
    if ((group & ((1 << shift) - 1)) == 0) {
      const int from = (group >> shift) * kLanesPerBox;
      int row_in_box = first;
      asm volatile("" : "+r"(row_in_box));
      row = reinterpret_cast<const std::uint8_t*>(
                __shfl_sync(common::kAllLanes, reinterpret_cast<unsigned long long>(mine), from)) +
            row_in_box * keys.stride_token + chunk * 16;
      left = __shfl_sync(common::kAllLanes, count, from);
    }
    if (left >= kGroup) {
#pragma unroll
      for (int i = 0; i < kGroup; i += kCopied, row += step)
        common::ptx::cp_async_16(place(group + i + first, chunk), row, 16);
    } else {
#pragma unroll
      for (int i = 0; i < kGroup; i += kCopied, row += step) {
        const bool exists = i + first < left;
        common::ptx::cp_async_16(place(group + i + first, chunk), exists ? row : keys.data,
                                 exists ? 16 : 0);
      }
    }
    left -= kGroup;
  }
}

}  // namespace msa::cuda::mma::warp
