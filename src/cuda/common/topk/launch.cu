// SPDX-License-Identifier: MIT
// Kernels over rows of block scores: a warp a row, or all warps of a CTA a row. See
// docs/kernels/topk.md.
#include "cuda/common/topk/launch.h"

#include "cuda/common/prologue/tile_rows.cuh"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/topk/row.cuh"
#include "cuda/common/topk/row_topk.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::topk {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
// Of one tile and group: the tile's record is read once for eight rows a warp.
constexpr int kRowsPerCta = 64;
// Scores a lane where warps share a row: 512 rows fit the GPU at once.
constexpr int kSplitPerLane = 16;

// Of the blocks that a tile lists: some hundred and fifty where neighbouring queries choose alike.
constexpr int kListedPerLane = 8;

/// As many CTAs as the registers of a lane's scores leave room for without spills.
template <int kMaxK, bool kUnitStride>
inline constexpr int kCtasPerSm = kMaxK == 16 && kUnitStride ? 4 : 2;

constexpr int kRowsPerWarp = kRowsPerCta / kWarps;
constexpr int kWholeRow = 0x7fffffff;  // as many chunks as it has

__device__ __forceinline__ const float* scores_of(const TopkParams& p, const RequestRecord& rows,
                                                  const Row& row, int group) {
  if (p.by_token) {
    return slots_of(p.scores, rows.q_begin + row.token, row.head);
  }
  const std::int64_t tile = blockIdx.x;
  return p.scores.data +
         ((tile * p.groups + group) * p.rows_per_group + row.slot) * p.scores.stride_h;
}

/// How many of `count` ascending blocks lie below `block`.
__device__ __forceinline__ int lower_bound(const int* blocks, int count, int block) {
  int low = 0;
  int high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (blocks[middle] < block) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Where a row's results go; ids count from the request's first block.
struct RowOut {
  int* ids;
  float* chosen;
  std::int64_t ids_stride;
  std::int64_t chosen_stride;
  int first_id;

  __device__ __forceinline__ void write(int slot, int block, float score) const {
    ids[slot * ids_stride] = block < 0 ? -1 : first_id + block;
    if (chosen != nullptr) chosen[slot * chosen_stride] = score;
  }
};

__device__ __forceinline__ RowOut out_of(const TopkParams& p, const RequestRecord& rows,
                                         const Row& row, int first_id) {
  const std::int64_t token = rows.q_begin + row.token;
  float* chosen = p.chosen.data == nullptr ? nullptr : slots_of(p.chosen, token, row.head);
  return {slots_of(p.ids, token, row.head), chosen, p.ids.stride_slot, p.chosen.stride_slot,
          first_id};
}

/// Writes ids ascending: forced, the list's, forced; then the tail. `block_of` tells an index of
/// the list what it stands for.
template <int kMaxK, class BlockOf>
__device__ __forceinline__ void write_row(const RowOut& out, int k, const Row& row,
                                          const ListStorage<kMaxK>& list, int size, int lane,
                                          const BlockOf& block_of) {
  const int forced = row.init + size;
  const int tail = forced + row.visible - row.local;
#pragma unroll
  for (int r = 0; r < (kMaxK + 31) / 32; ++r) {
    const int slot = r * 32 + lane;
    const int e = slot - row.init;
    const bool listed = e >= 0 && e < size;
    int block = slot < row.init ? slot : row.local + slot - forced;
    float score = -kMinusInf;
    if (listed) {
      block = block_of(list.indices[e]);
      score = unordered(list.scores[e]);
    }
    if (slot >= tail) {
      block = -1;
      score = kMinusInf;
    }
    if (slot < k) out.write(slot, block, score);
  }
  __syncwarp();
}

/// Every visible block, of a row that chooses them all and whose scores nobody wants.
__device__ __forceinline__ void write_visible(const RowOut& out, int k, const Row& row, int lane) {
  for (int slot = lane; slot < k; slot += 32) {
    out.write(slot, slot < row.visible ? slot : -1, 0.0f);
  }
}

/// The row was scored from its keys.
__device__ __forceinline__ void write_unfiltered(const TopkParams& p, const RequestRecord& rows,
                                                 const Row& row, int lane) {
  if (p.candidates.data != nullptr && lane == 0)
    item_of(p.candidates, rows.q_begin + row.token, row.head) = row.visible == 0 ? 0 : -1;
}

template <int kMaxK, bool kUnitStride, int kPerLane>
__global__ void __launch_bounds__(kThreads, kCtasPerSm<kMaxK, kUnitStride>)
    topk_rows(const __grid_constant__ TopkParams p) {
  __shared__ ListStorage<kMaxK> lists[kWarps];
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);  // known to be uniform
  const int group = blockIdx.z;
  ListStorage<kMaxK>& list = lists[warp];
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const RequestRecord rows = prologue::rows_of(p.tiles, p.tiles.records[blockIdx.x]);
  const int num_rows = rows.seqlen_q * p.heads;
  const int first = blockIdx.y * kRowsPerCta + warp;
  if (first >= num_rows) return;
  const int first_id = static_cast<int>(rows.key_offset) / p.block_size;
  const Row located =
      locate_row(p, rows, group, min(first + lane % kRowsPerWarp * kWarps, num_rows - 1));
#pragma unroll 1
  for (int i = 0; i < kRowsPerWarp && first + i * kWarps < num_rows; ++i) {
    int size = 0;
    {
      const Row row = row_of_lane(located, i);
      const int count = free_blocks(row);
      const int k = free_slots(p, row);
      if (count <= k && p.chosen.data == nullptr) {  // every visible block is in
        write_visible(out_of(p, rows, row, first_id), p.k, row, lane);
        write_unfiltered(p, rows, row, lane);
        continue;
      }
      const float* scores = scores_of(p, rows, row, group) + row.init * p.scores.stride_slot;
      size = select_row<kMaxK, kUnitStride, kPerLane>(list, scores, p.scores.stride_slot, count, k,
                                                      0, kWholeRow, lane);
    }
    const Row row = row_of_lane(located, i);  // again: it costs less than its registers above
    write_row(out_of(p, rows, row, first_id), p.k, row, list, size, lane,
              [&](int index) { return row.init + index; });
    write_unfiltered(p, rows, row, lane);
  }
}

/// As topk_rows, of scores of the blocks that each tile lists.
template <int kMaxK>
__global__ void __launch_bounds__(kThreads, kCtasPerSm<kMaxK, true>)
    topk_listed_rows(const __grid_constant__ TopkParams p) {
  __shared__ ListStorage<kMaxK> lists[kWarps];
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);  // known to be uniform
  const int group = blockIdx.z;
  ListStorage<kMaxK>& list = lists[warp];
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const RequestRecord rows = prologue::rows_of(p.tiles, p.tiles.records[blockIdx.x]);
  const int num_rows = rows.seqlen_q * p.heads;
  const int first = blockIdx.y * kRowsPerCta + warp;
  if (first >= num_rows) return;
  const int first_id = static_cast<int>(rows.key_offset) / p.block_size;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * p.groups + group;
  const int* blocks = p.listed.blocks + at * p.listed.stride;
  const int num_blocks = p.listed.sizes[at].y;
  const Row located =
      locate_row(p, rows, group, min(first + lane % kRowsPerWarp * kWarps, num_rows - 1));
  const int located_begin = lower_bound(blocks, num_blocks, located.init);
  const int located_end = lower_bound(blocks, num_blocks, located.local);
#pragma unroll 1
  for (int i = 0; i < kRowsPerWarp && first + i * kWarps < num_rows; ++i) {
    const Row row = row_of_lane(located, i);
    const int begin = __shfl_sync(kAllLanes, located_begin, i);
    const int end = __shfl_sync(kAllLanes, located_end, i);
    const RowOut out = out_of(p, rows, row, first_id);
    const int k = free_slots(p, row);
    if (free_blocks(row) <= k && p.chosen.data == nullptr) {
      write_visible(out, p.k, row, lane);
      continue;
    }
    const float* scores = scores_of(p, rows, row, group) + begin;
    const int size = select_row<kMaxK, true, kListedPerLane>(list, scores, 1, end - begin, k, 0,
                                                             kWholeRow, lane);
    write_row(out, p.k, row, list, size, lane, [&](int index) { return blocks[begin + index]; });
  }
}

/// Joins the warps' lists, of which each holds lower indices than the next, in the first one. One
/// warp's work.
template <int kMaxK>
__device__ __forceinline__ int join_lists(ListStorage<kMaxK>* lists, const int* sizes, int k,
                                          int lane) {
  constexpr int kRounds = kWarps * kMaxK / 32;
  std::uint32_t v[kRounds];
  int index[kRounds];
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int w = (r * 32 + lane) / kMaxK;
    const int e = (r * 32 + lane) % kMaxK;
    v[r] = e < sizes[w] ? lists[w].scores[e] : 0;
    index[r] = e < sizes[w] ? lists[w].indices[e] : 0;
  }
  std::uint32_t kth;
  const std::uint32_t kept = best_of(v, k, lane, kth);
  return store_kept(lists[0], v, index, kept, lane);
}

template <int kMaxK, bool kUnitStride>
__global__ void __launch_bounds__(kThreads, kCtasPerSm<kMaxK, kUnitStride>)
    topk_split_rows(const __grid_constant__ TopkParams p) {
  __shared__ ListStorage<kMaxK> lists[kWarps];
  __shared__ int sizes[kWarps];
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);  // known to be uniform
  const int group = blockIdx.z;
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const RequestRecord rows = prologue::rows_of(p.tiles, p.tiles.records[blockIdx.x]);
  const int r = blockIdx.y;
  if (r >= rows.seqlen_q * p.heads) return;
  const Row row = locate_row(p, rows, group, r);
  const int k = free_slots(p, row);
  const int count = free_blocks(row);
  const float* scores = scores_of(p, rows, row, group) + row.init * p.scores.stride_slot;
  const int chunks = (count + 32 * kSplitPerLane - 1) / (32 * kSplitPerLane);
  const int share = (chunks + kWarps - 1) / kWarps;
  const int size = select_row<kMaxK, kUnitStride, kSplitPerLane>(
      lists[warp], scores, p.scores.stride_slot, count, k, warp * share, (warp + 1) * share, lane);
  if (lane == 0) sizes[warp] = size;
  __syncthreads();
  if (warp != 0) return;
  const int total = k > 0 ? join_lists(lists, sizes, k, lane) : 0;
  const int first_id = static_cast<int>(rows.key_offset) / p.block_size;
  write_row(out_of(p, rows, row, first_id), p.k, row, lists[0], total, lane,
            [&](int index) { return row.init + index; });
  write_unfiltered(p, rows, row, lane);
}

template <int kMaxK, bool kUnitStride>
void launch_rows(const TopkParams& p, bool split_rows, cudaStream_t stream) {
  const auto tiles = static_cast<unsigned>(p.num_tiles);
  const auto rows = static_cast<unsigned>(p.rows_per_group);
  const auto groups = static_cast<unsigned>(p.groups);
  const dim3 grid(tiles, split_rows ? rows : (rows + kRowsPerCta - 1) / kRowsPerCta, groups);
  const LaunchConfig config{
      .grid = grid, .block = kThreads, .programmatic = true, .stream = stream};
  constexpr int kShortRow = 256;  // columns: one chunk of 8 a lane, half the instructions
  if (split_rows) {
    launch_kernel(topk_split_rows<kMaxK, kUnitStride>, config, p);
  } else if (p.columns <= kShortRow) {
    launch_kernel(topk_rows<kMaxK, kUnitStride, 8>, config, p);
  } else {
    launch_kernel(topk_rows<kMaxK, kUnitStride, 32>, config, p);
  }
}

template <int kMaxK>
void launch_strides(const TopkParams& p, bool split_rows, cudaStream_t stream) {
  if (p.scores.stride_slot == 1) {
    launch_rows<kMaxK, true>(p, split_rows, stream);
  } else {
    launch_rows<kMaxK, false>(p, split_rows, stream);
  }
}

template <int kMaxK>
void launch_listed_rows(const TopkParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.num_tiles),
                  static_cast<unsigned>((p.rows_per_group + kRowsPerCta - 1) / kRowsPerCta),
                  static_cast<unsigned>(p.groups));
  launch_kernel(topk_listed_rows<kMaxK>,
                {.grid = grid, .block = kThreads, .programmatic = true, .stream = stream}, p);
}

}  // namespace

void launch_topk(const TopkParams& params, bool split_rows, cudaStream_t stream) {
  if (params.k <= 16) {
    launch_strides<16>(params, split_rows, stream);
  } else if (params.k <= 32) {
    launch_strides<32>(params, split_rows, stream);
  } else {
    launch_strides<64>(params, split_rows, stream);
  }
}

void launch_topk_listed(const TopkParams& params, cudaStream_t stream) {
  if (params.k <= 16) {
    launch_listed_rows<16>(params, stream);
  } else if (params.k <= 32) {
    launch_listed_rows<32>(params, stream);
  } else {
    launch_listed_rows<64>(params, stream);
  }
}

int tokens_per_tile(int heads) { return std::max(1, kRowsPerCta / heads); }

void launch_select_topk(const TopkParams& params, bool split_rows, cudaStream_t stream) {
  TopkParams rows = params;
  rows.groups = 1;
  rows.rows_per_group = params.tiles.tokens * params.heads;
  rows.by_token = true;
  launch_topk(rows, split_rows, stream);
}

}  // namespace msa::cuda::common::topk
