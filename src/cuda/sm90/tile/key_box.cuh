// SPDX-License-Identifier: MIT
// How a block of keys or values becomes boxes of the copy engine: one box of ragged rows, one box
// inside a large page, or several small pages. A warp loads a block: lane l issues box l / panels,
// panel l % panels (a panel is 128 bytes of a row). The tile in shared memory: panel after panel,
// each [kBlock rows][128 swizzled bytes]; see tile/descriptor.cuh.
#pragma once

#include <cstdint>

#include "cuda/box.h"
#include "cuda/common/tile/key_box.cuh"
#include "cuda/sm90/ptx/copy.cuh"
#include "cuda/sm90/tile/descriptor.cuh"

namespace msa::cuda::sm90 {

using common::box_shift;
using common::checked_box;
using common::find_key_box;
using common::FoundBox;
using common::key_box_lanes;
using common::KeyBox;
using common::kNoPage;
using common::locate_key_box;
namespace warp {
using common::warp::bad_boxes;
}  // namespace warp

/// One lane's share of a block: call on every lane below key_box_lanes with box = lane / kPanels
/// located before, after one lane's mbarrier_arrive_expect_tx of kBlock * kPanels * kRowBytes bytes
/// and a __syncwarp. Rows of fewer than 128 bytes are a panel of their own.
template <int kBlock, int kPanels, int kItems = kPanelItems, int kRowBytes = kPanelRowBytes>
__device__ __forceinline__ void load_key_box(std::uint8_t* tile, const CUtensorMap* map,
                                             ptx::Mbarrier* full, int head, const KeyBox& at,
                                             int page_size, int lane) {
  const int panel = lane % kPanels;
  const int row = lane / kPanels * box_tokens(kBlock, page_size);
  ptx::cp_async_bulk_tensor<4>(tile + (panel * kBlock + row) * kRowBytes, map,
                               {panel * kItems, at.token, head, at.page}, full);
}

}  // namespace msa::cuda::sm90
