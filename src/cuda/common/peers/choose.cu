// SPDX-License-Identifier: MIT
// One warp a (query row, head), as merge_selections. What lies behind a link takes as long as all
// else: ids and scores of all ranks are asked for together. See docs/kernels/merge.md.
#include <algorithm>

#include "cuda/common/merge_selections/keys.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/peers/launch.h"
#include "cuda/common/peers/meet.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::peers {
namespace {

namespace selections = merge_selections;
using selections::Key;

constexpr int kMaxWarps = 8;
constexpr int kMinThreads = 64;         // a thread for each rank
constexpr int kSharedBytes = 48 << 10;  // of a CTA, unless one row needs more
constexpr int kAhead = 4;               // candidates of a lane that are asked for together

static_assert(kMaxRanks <= kMinThreads);
static_assert(sizeof(ChooseParams) <= 4096, "parameters of a kernel on every driver");

__host__ __device__ constexpr int candidates_of(const ChooseParams& p) {
  return p.meeting.ranks * p.k + p.num_forced;
}

/// Keys of its candidates, and the chosen ids in ascending order.
constexpr int row_bytes(const ChooseParams& p) {
  return candidates_of(p) * static_cast<int>(sizeof(Key)) + (p.k + 1) / 2 * 2 * 4;
}

struct Candidate {
  int id = -1;  // of the whole sequence; below 0: none
  float score = 0.0f;
};

__device__ __forceinline__ Candidate load_candidate(const ChooseParams& p, int row, int i) {
  const int parts = p.meeting.ranks * p.k;
  if (i >= parts) {
    const int token = row / p.heads;
    return {p.forced[std::int64_t{token} * p.num_forced + (i - parts)], INFINITY};
  }
  const int rank = i / p.k;
  const int* ids = p.boxes[rank] + std::int64_t{row} * p.k + (i - rank * p.k);
  const int id = ids[0];
  // Of the first blocks these lie on that rank, and its ids count behind them.
  const int skipped =
      p.first_blocks > rank ? (p.first_blocks - rank + p.meeting.ranks - 1) / p.meeting.ranks : 0;
  const float score = __int_as_float(ids[std::int64_t{p.rows} * p.k]);
  return {p.dealt == 0 || id < 0 ? id : (id + skipped) * p.meeting.ranks + rank, score};
}

/// All candidates of one row; returns how many.
__device__ __forceinline__ int gather(const ChooseParams& p, int row, int lane, Key* keys) {
  const int total = candidates_of(p);
  int count = 0;
#pragma unroll 1
  for (int first = 0; first < total; first += 32 * kAhead) {
    Candidate ahead[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      const int i = first + n * 32 + lane;
      if (i < total) ahead[n] = load_candidate(p, row, i);
    }
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      const bool there = ahead[n].id >= 0;
      const unsigned lanes = __ballot_sync(kAllLanes, there);
      if (there) {
        keys[count + __popc(lanes & lanes_below(lane))] =
            selections::make_key(ahead[n].score, ahead[n].id);
      }
      count += __popc(lanes);
    }
  }
  __syncwarp();
  return count;
}

/// The ids of `count` keys in ascending order.
__device__ __forceinline__ void sort_ids(const Key* keys, int count, int* sorted, int lane) {
  for (int i = lane; i < count; i += 32) {
    const int id = selections::id_of(keys[i]);
    int rank = 0;
    for (int j = 0; j < count; ++j) {
      const int other = selections::id_of(keys[j]);
      rank += other < id || (other == id && j < i) ? 1 : 0;
    }
    sorted[rank] = id;
  }
  __syncwarp();
}

/// Both lists of one row, each with -1 behind its last id.
__device__ __forceinline__ void write_lists(const ChooseParams& p, int row, const int* sorted,
                                            int count, int lane) {
  int* ids = p.ids + std::int64_t{row} * p.k;
  int* own = p.own == nullptr ? nullptr : p.own + std::int64_t{row} * p.k;
  const int ranks = p.meeting.ranks;
  int here = 0;
  for (int first = 0; first < p.k; first += 32) {
    const int slot = first + lane;
    const int id = slot < count ? sorted[slot] : -1;
    if (slot < p.k) ids[slot] = id;
    if (own == nullptr) continue;
    const bool mine = id >= 0 && id % ranks == p.meeting.rank;
    const unsigned lanes = __ballot_sync(kAllLanes, mine);
    if (mine) own[here + __popc(lanes & lanes_below(lane))] = id / ranks;
    here += __popc(lanes);
  }
  if (own == nullptr) return;
  for (int slot = here + lane; slot < p.k; slot += 32) own[slot] = -1;
}

__global__ void __launch_bounds__(kMaxWarps * 32)
    choose_kernel(const __grid_constant__ ChooseParams p, int warps) {
  extern __shared__ Key keys_of_cta[];  // [warps, row_bytes]
  meet(p.meeting);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int row = static_cast<int>(blockIdx.x) * warps + warp;
  if (warp >= warps || row >= p.rows) return;
  const int capacity = candidates_of(p);
  Key* keys = keys_of_cta + warp * (capacity + (p.k + 1) / 2);
  int* sorted = reinterpret_cast<int*>(keys + capacity);
  const int count = gather(p, row, lane, keys);
  if (count > p.k) selections::keep_best(keys, count, p.k, lane);
  sort_ids(keys, min(count, p.k), sorted, lane);
  write_lists(p, row, sorted, min(count, p.k), lane);
}

}  // namespace

void launch_choose(const ChooseParams& p, cudaStream_t stream) {
  constexpr int kMostBytes = (kMaxRanks * 256 + kMaxForced) * 8 + 256 * 4;
  const int bytes = row_bytes(p);
  const int warps = std::clamp(kSharedBytes / bytes, 1, kMaxWarps);
  launch_kernel(choose_kernel,
                {.grid = dim3(static_cast<unsigned>((p.rows + warps - 1) / warps)),
                 .block = dim3(static_cast<unsigned>(std::max(warps * 32, kMinThreads))),
                 .shared_bytes = static_cast<std::size_t>(warps) * static_cast<std::size_t>(bytes),
                 .most_shared_bytes = std::max<std::size_t>(kSharedBytes, kMostBytes),
                 .programmatic = true,
                 .stream = stream},
                p, warps);
}

}  // namespace msa::cuda::common::peers
