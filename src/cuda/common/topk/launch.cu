// SPDX-License-Identifier: MIT
// Kernels over rows of block scores: a warp a row, or all warps of a CTA a row. See
// docs/kernels/topk.md.
#include "cuda/common/topk/launch.h"

#include "cuda/common/prologue/tile_rows.cuh"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/topk/row_topk.cuh"
#include "cuda/geometry.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::topk {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
// Of one tile and group: the tile's record is read once for eight rows a warp.
constexpr int kRowsPerCta = 64;
// Scores a lane where warps share a row: 512 rows fit the GPU at once.
constexpr int kSplitPerLane = 16;

/// As many CTAs as the registers of a lane's scores leave room for without spills.
template <int kMaxK, bool kUnitStride, int kPerLane>
inline constexpr int kCtasPerSm = kPerLane <= 16 ? (kMaxK == 16 && kUnitStride ? 4 : 2)
                                                 : (kMaxK == 16 && kUnitStride ? 4 : 2);

/// One row and what it may choose from. Blocks are local to the request until they are written.
struct Row {
  int token;    // in the tile
  int head;     // of all
  int slot;     // row of the scratch, in the tile's group
  int visible;  // blocks
  int init;     // forced blocks: [0, init) and [local, visible)
  int local;
};

__device__ __forceinline__ Row locate_row(const TopkParams& p, const RequestRecord& rows, int group,
                                          int r) {
  Row row;
  row.token = r / p.heads;
  row.head = group * p.heads + r % p.heads;
  row.slot = r;
  const int keys = visible_keys(rows, row.token, p.causal);
  const int first_id = static_cast<int>(rows.key_offset) / p.block_size;
  row.visible = static_cast<int>(
      min(static_cast<std::int64_t>((keys + p.block_size - 1) / p.block_size), p.columns));
  row.init = min(max(p.init_blocks - first_id, 0), row.visible);
  // Divisions in 32 bits: where the last key lies further on, no local block lies in this shard.
  const std::int64_t last = last_position(rows, row.token, p.causal) - rows.key_offset;
  const int last_block = static_cast<int>(clamp64(last, 0, 0x7fffffff)) / p.block_size;
  row.local = min(max(last_block + 1 - p.local_blocks, row.init), row.visible);
  return row;
}

/// Row `lane` of a warp's rows, located by that lane: the divisions are paid once for all of them.
__device__ __forceinline__ Row row_of_lane(const Row& mine, int lane) {
  Row row;
  row.token = __shfl_sync(kAllLanes, mine.token, lane);
  row.head = __shfl_sync(kAllLanes, mine.head, lane);
  row.slot = __shfl_sync(kAllLanes, mine.slot, lane);
  row.visible = __shfl_sync(kAllLanes, mine.visible, lane);
  row.init = __shfl_sync(kAllLanes, mine.init, lane);
  row.local = __shfl_sync(kAllLanes, mine.local, lane);
  return row;
}

__device__ __forceinline__ const float* scores_of(const TopkParams& p, const RequestRecord& rows,
                                                  const Row& row, int group) {
  if (p.by_token) {
    return slots_of(p.scores, rows.q_begin + row.token, row.head);
  }
  const std::int64_t tile = blockIdx.x;
  return p.scores.data +
         ((tile * p.groups + group) * p.rows_per_group + row.slot) * p.scores.stride_h;
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

/// Writes ids ascending: forced, the list's, forced; then the tail.
template <int kMaxK>
__device__ __forceinline__ void write_row(const RowOut& out, int k, const Row& row,
                                          const ListStorage<kMaxK>& list, int size, int lane) {
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
      block = row.init + list.indices[e];
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

template <int kMaxK, bool kUnitStride, int kPerLane>
__global__ void __launch_bounds__(kThreads, kCtasPerSm<kMaxK, kUnitStride, kPerLane>)
    topk_rows(const __grid_constant__ TopkParams p) {
  constexpr int kRowsPerWarp = kRowsPerCta / kWarps;
  constexpr int kChunks = 0x7fffffff;  // all of a row
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
      const int count = row.local - row.init;
      const int k = p.k - row.init - (row.visible - row.local);
      if (count <= k && p.chosen.data == nullptr) {  // every visible block is in
        const RowOut out = out_of(p, rows, row, first_id);
        for (int slot = lane; slot < p.k; slot += 32) {
          out.write(slot, slot < row.visible ? slot : -1, 0.0f);
        }
        continue;
      }
      const float* scores = scores_of(p, rows, row, group) + row.init * p.scores.stride_slot;
      size = select_row<kMaxK, kUnitStride, kPerLane>(list, scores, p.scores.stride_slot, count, k,
                                                      0, kChunks, lane);
    }
    const Row row = row_of_lane(located, i);  // again: it costs less than its registers above
    write_row(out_of(p, rows, row, first_id), p.k, row, list, size, lane);
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
  __syncwarp();
  int at = 0;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const bool in = (kept >> r & 1) != 0;
    const std::uint32_t lanes = __ballot_sync(kAllLanes, in);
    const int slot = at + __popc(lanes & ((1u << lane) - 1));
    if (in) {
      lists[0].scores[slot] = v[r];
      lists[0].indices[slot] = index[r];
    }
    at += __popc(lanes);
  }
  __syncwarp();
  return at;
}

template <int kMaxK, bool kUnitStride>
__global__ void __launch_bounds__(kThreads, kCtasPerSm<kMaxK, kUnitStride, kSplitPerLane>)
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
  const int k = p.k - row.init - (row.visible - row.local);
  const int count = row.local - row.init;
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
  write_row(out_of(p, rows, row, first_id), p.k, row, lists[0], total, lane);
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

int tokens_per_tile(int heads) { return std::max(1, kRowsPerCta / heads); }

void launch_select_topk(const TopkParams& params, bool split_rows, cudaStream_t stream) {
  TopkParams rows = params;
  rows.groups = 1;
  rows.rows_per_group = params.tiles.tokens * params.heads;
  rows.by_token = true;
  launch_topk(rows, split_rows, stream);
}

}  // namespace msa::cuda::common::topk
