// SPDX-License-Identifier: MIT
// Whether neighbouring tokens' lists share little, by some tiles of them: one CTA, a warp a tile.
// What it finds decides how gradients are added up, and the same lists are answered alike.
#include "cuda/common/backward/launch.h"
#include "cuda/common/rows.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/geometry.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::backward {
namespace {

constexpr int kOverlapWarps = 16;
constexpr int kSamples = 64;
constexpr int kMostIds = 512;  // of a tile that are looked at

/// Of the tile's ids, those that no entry before has, and all; a lane's share of both.
struct Found {
  int distinct = 0;
  int all = 0;
};

__device__ __forceinline__ Found look(const OverlapParams& params, int sample, int* ids) {
  const Pairs& p = params.pairs;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t tiles = p.batch.total_q / params.tokens;
  const std::int64_t first = sample * tiles / kSamples * params.tokens;
  const auto tokens = static_cast<int>(min(std::int64_t{params.tokens}, p.batch.total_q));
  // What rows of padding list is nobody's: it must not show.
  const unsigned owned =
      __ballot_sync(kAllLanes, lane < tokens && owner_of(p.batch, p.requests, first + lane) >= 0);
  const int count = min(tokens * p.lists.k, kMostIds);
  for (int i = lane; i < count; i += 32) {
    const int token = i / p.lists.k;
    const int* list = slots_of(p.lists.ids, first + token, sample % p.heads_kv);
    ids[i] =
        (owned >> token & 1) == 0 ? -1 : list[(i - token * p.lists.k) * p.lists.ids.stride_slot];
  }
  __syncwarp();
  Found found;
  for (int i = lane; i < count; i += 32) {
    if (ids[i] < 0) continue;
    bool fresh = true;
    for (int before = 0; before < i && fresh; ++before) fresh = ids[before] != ids[i];
    ++found.all;
    if (fresh) ++found.distinct;
  }
  __syncwarp();
  return found;
}

__global__ void __launch_bounds__(kOverlapWarps * 32)
    overlap_kernel(const __grid_constant__ OverlapParams params) {
  __shared__ int ids[kOverlapWarps][kMostIds];
  __shared__ int sums[2][kOverlapWarps];
  const int warp = static_cast<int>(threadIdx.x / 32);
  Found found;
  for (int sample = warp; sample < kSamples; sample += kOverlapWarps) {
    const Found more = look(params, sample, ids[warp]);
    found.distinct += more.distinct;
    found.all += more.all;
  }
  for (int step = 16; step > 0; step /= 2) {
    found.distinct += __shfl_xor_sync(kAllLanes, found.distinct, step);
    found.all += __shfl_xor_sync(kAllLanes, found.all, step);
  }
  if (threadIdx.x % 32 == 0) {
    sums[0][warp] = found.distinct;
    sums[1][warp] = found.all;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  int distinct = 0;
  int all = 0;
  for (int i = 0; i < kOverlapWarps; ++i) {
    distinct += sums[0][i];
    all += sums[1][i];
  }
  *params.little = distinct * 2 > all ? 1 : 0;
}

}  // namespace

void launch_overlap(const OverlapParams& params, cudaStream_t stream) {
  launch_kernel(overlap_kernel,
                {.grid = dim3(1), .block = dim3(kOverlapWarps * 32), .stream = stream}, params);
}

}  // namespace msa::cuda::common::backward
