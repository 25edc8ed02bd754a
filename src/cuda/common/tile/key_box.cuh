// SPDX-License-Identifier: MIT
// How a block of keys or values becomes boxes of the copy engine: one box of ragged rows, one box
// inside a large page, or several small pages. A warp loads a block: lane l issues box l / panels,
// panel l % panels (a panel is 128 bytes of a row). The tile in shared memory: panel after panel,
// each [kBlock rows][128 swizzled bytes]; see tile/descriptor.cuh.
#pragma once

#include <cstdint>

#include "cuda/box.h"
#include "cuda/common/number.cuh"
#include "cuda/common/ptx/cp_async.cuh"
#include "cuda/common/tile/swizzle.cuh"
#include "cuda/geometry.cuh"

namespace msa::cuda::common {

/// Logarithm of box_tokens: a box is a power of two, as blocks are. Divisions take long where one
/// warp does one thing after the other.
__device__ __forceinline__ int box_shift(int block, int page_size) {
  return __ffs(box_tokens(block, page_size)) - 1;
}

/// Where one box starts: coordinates of the map that make_key_map made.
struct KeyBox {
  int token = 0;  // in its page, or the row of ragged keys
  int page = 0;
  // The page table held an id out of range: zeros are loaded, the keys must not count.
  bool bad = false;
};

inline constexpr int kNoPage = 0x7fffffff;  // outside every tensor: the box is filled with zeros

/// A box whose page number nobody has looked at: it may be on its way.
struct FoundBox {
  int token = 0;
  int page = 0;        // as the table says
  bool paged = false;  // or there is no number to look at
};

/// Box `box` of block `block` (both local to the request). Reads the page table for pages in use
/// only.
template <int kBlock>
__device__ __forceinline__ FoundBox find_key_box(const BatchParams& batch,
                                                 const RequestRecord& request, int request_idx,
                                                 int block, int box) {
  const int first = block * kBlock;  // keys of a request are fewer than 2^30
  if (batch.page_size == 0) return {static_cast<int>(request.k_begin + first), 0, false};
  const int shift = box_shift(kBlock, batch.page_size);
  const int token = first + (box << shift);
  if (token >= request.seqlen_k) return {0, kNoPage, false};
  const int page = batch.page_size <= kBlock ? token >> shift : token / batch.page_size;
  return {token - page * batch.page_size, load_page(batch, request_idx, page), true};
}

__device__ __forceinline__ KeyBox checked_box(const BatchParams& batch, const FoundBox& found) {
  const bool bad = found.paged && (found.page < 0 || found.page >= batch.num_pages);
  return {found.token, bad ? kNoPage : found.page, bad};
}

/// The same at once.
template <int kBlock>
__device__ __forceinline__ KeyBox locate_key_box(const BatchParams& batch,
                                                 const RequestRecord& request, int request_idx,
                                                 int block, int box) {
  return checked_box(batch, find_key_box<kBlock>(batch, request, request_idx, block, box));
}

/// Lanes of a warp that issue something for a block of kPanels panels.
template <int kBlock, int kPanels>
__device__ __forceinline__ int key_box_lanes(int page_size) {
  return (kBlock >> box_shift(kBlock, page_size)) * kPanels;
}

namespace warp {

/// Boxes of a block with a bad page id, as bits, from the box that each lane located (none:
/// KeyBox{}); a box has kPanels neighbouring lanes.
template <int kPanels>
__device__ __forceinline__ unsigned bad_boxes(const KeyBox& box, int lane) {
  const unsigned lanes = __ballot_sync(common::kAllLanes, box.bad);
  if (kPanels == 1 || lanes == 0) return lanes;
  return __reduce_or_sync(common::kAllLanes, box.bad ? 1u << (lane / kPanels) : 0u);
}

}  // namespace warp

}  // namespace msa::cuda::common
