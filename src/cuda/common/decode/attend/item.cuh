// SPDX-License-Identifier: MIT
// What a CTA works on: its place in the grid, and the blocks of its row: all, a given list, or its
// own selection.
#pragma once

#include "cuda/common/decode/attend/traits.cuh"
#include "cuda/common/lists.cuh"
#include "cuda/geometry.cuh"

namespace msa::cuda::common::decode {

/// The item of this CTA, as far as the grid tells.
__device__ __forceinline__ Item make_item(const AttendParams& p) {
  const int token_slots = p.select.token_slots;
  Item item{};
  item.split = blockIdx.x;
  item.head = blockIdx.y / p.tiles;
  item.tile = blockIdx.y % p.tiles;
  item.request = blockIdx.z / token_slots;
  item.token = blockIdx.z % token_slots;
  return item;
}

/// Whether the blocks that a list names are two of Traits::kBlock keys each.
template <class Traits>
__device__ __forceinline__ bool halves_blocks(const AttendParams& p) {
  return Traits::kHalvesBlocks && p.blocks == Blocks::Listed &&
         p.select.batch.block_size != Traits::kBlock;
}

/// Local block, of Traits::kBlock keys, of entry i of the row's list. Of a row's last block the
/// second half may hold nothing that the row sees: it is masked like any such keys.
template <class Traits>
__device__ __forceinline__ int entry_block(const AttendParams& p, const SelectStorage& s, int i) {
  if (p.blocks == Blocks::All) return i;
  return halves_blocks<Traits>(p) ? 2 * s.ids[i >> 1] + (i & 1) : s.ids[i];
}

/// Reads a given list: what is visible of it, in the order given, lies in s.ids afterwards (local
/// ids). One warp.
__device__ __forceinline__ void read_list(const AttendParams& p, const RequestRecord& r,
                                          const Item& item, SelectStorage& s, int lane) {
  const BatchParams& batch = p.select.batch;
  const common::ListReader reader(r, batch.block_size, ceil_div(item.visible, batch.block_size));
  int kept = 0;
  common::warp::for_each_listed(
      p.lists, reader, item.row, item.head, lane, [&](int, const common::ListedBlock& listed) {
        if (listed.fault) report(batch.status, item.request, item.token, FaultKind::BlockId);
        const unsigned used = __ballot_sync(common::kAllLanes, listed.block >= 0);
        if (listed.block >= 0)
          s.ids[kept + __popc(used & common::lanes_below(lane))] = listed.block;
        kept += __popc(used);
      });
  if (lane == 0) s.num_ids = kept;
}

/// a / b, quickly where b is a power of two.
__device__ __forceinline__ int divide(int a, int b) {
  return (b & (b - 1)) == 0 ? a >> (__ffs(b) - 1) : a / b;
}

/// Selects the row's blocks into shared.select; `row` is what is chosen from, with its scratch
/// where the ring will be. False in threads that have no part in a rehearsal, in which one warp
/// selects.
template <class Traits>
__device__ __forceinline__ bool select_blocks(const AttendParams& p, Item& item, SelectRow row,
                                              AttendShared<Traits>& shared, std::uint8_t* stages,
                                              bool rehearsal) {
  if (rehearsal) {
    item.end = 1;
    if (threadIdx.x >= 32) return false;
    row.orders = static_cast<const std::uint32_t*>(p.q.data) + item.row * p.q.stride_t / 2;
    row.visible = min(row.visible, Traits::kDim / 2);
  }
  const int room = Traits::Engine::segment_room(p.select.max_blocks, rehearsal);
  select_topk(shared.select, stages, room, row, p.select.topk, p.select.lanes, threadIdx.x,
              rehearsal);
  return true;
}

/// Which of its row's blocks this CTA takes.
__device__ __forceinline__ void share_blocks(const AttendParams& p, Item& item) {
  const int share = divide(item.num_entries, p.splits);
  const int longer = item.num_entries - share * p.splits;  // splits that take one block more
  item.begin = share * item.split + min(item.split, longer);
  item.end = item.begin + share + (item.split < longer ? 1 : 0);
}

/// Finds the row's blocks, all, listed or selected ones. All threads of the CTA call it. In a
/// rehearsal one warp selects, while others go ahead (row.cuh).
template <class Traits>
__device__ __forceinline__ void find_blocks(const AttendParams& p, const RequestRecord& r,
                                            Item& item, SelectRow row, AttendShared<Traits>& shared,
                                            std::uint8_t* stages, bool rehearsal) {
  if (p.blocks == Blocks::All) {
    item.num_entries = (item.visible + Traits::kBlock - 1) / Traits::kBlock;
  } else if (Traits::kSelects && p.blocks == Blocks::Scored) {
    if (!select_blocks<Traits>(p, item, row, shared, stages, rehearsal)) return;
    if (threadIdx.x < kSelectThreads && item.split == 0 && item.tile == 0 && !rehearsal) {
      store_selection(p.select, shared.select, item.row, item.head, row.first, threadIdx.x);
    }
    if (rehearsal) return;
    item.num_entries = shared.select.num_ids;
  } else {
    if (threadIdx.x < 32) read_list(p, r, item, shared.select, threadIdx.x);
    __syncthreads();
    item.num_entries = shared.select.num_ids * (halves_blocks<Traits>(p) ? 2 : 1);
  }
  share_blocks(p, item);
}

}  // namespace msa::cuda::common::decode
