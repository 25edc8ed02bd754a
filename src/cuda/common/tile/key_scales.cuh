// SPDX-License-Identifier: MIT
// The scales of a block's keys, from the boxes that a warp located (tile/key_box.cuh).
#pragma once

#include "cuda/common/scales.cuh"
#include "cuda/common/tile/key_box.cuh"

namespace msa::cuda::common::warp {

/// The scale of key lane + 32 i of the block in `to[i]`. Of keys from `visible` on and of pages
/// that do not exist none is read: theirs is 0. `box`: as each lane located its own.
template <int kBlock, int kPanels, class Scale, class From>
__device__ __forceinline__ void load_scales(Scale (&to)[kBlock / 32], const From& scales,
                                            const KeyBox& box, int head, int visible, int page_size,
                                            int lane) {
  const int shift = box_shift(kBlock, page_size);
#pragma unroll
  for (int i = 0; i < kBlock / 32; ++i) {
    const int key = i * 32 + lane;
    const int from = (key >> shift) * kPanels;  // the lane of the key's box
    const int first = __shfl_sync(common::kAllLanes, box.token, from);
    const int page = __shfl_sync(common::kAllLanes, box.page, from);
    to[i] = Scale{};
    if (key < visible && page != kNoPage)
      to[i] = common::scale_of(scales, page, first + (key & ((1 << shift) - 1)), head);
  }
}

/// Whether any of them needs care.
template <int kCount>
__device__ __forceinline__ bool any_odd_scale(const float (&scales)[kCount]) {
  bool odd = false;
#pragma unroll
  for (int i = 0; i < kCount; ++i) odd |= common::is_odd_scale(scales[i]);
  return __any_sync(common::kAllLanes, odd) != 0;
}

}  // namespace msa::cuda::common::warp
