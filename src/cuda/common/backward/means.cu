// SPDX-License-Identifier: MIT
// What the keys of each tile have in common. A CTA a (tile, KV head).
#include <algorithm>

#include "cuda/common/backward/average.cuh"
#include "cuda/common/backward/launch.h"
#include "cuda/common/backward/tiles.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::backward {
namespace {

constexpr int kMeanDim = 128;
constexpr int kMeanThreads = kMeanDim;
constexpr int kMostKeys = 128;               // of a tile
constexpr int kRowWords = kMeanDim / 2 + 1;  // threads that read a key each find banks of their own
constexpr std::int64_t kMaxMeanCtas = 4096;

/// A tile's keys; all of it is on its way at once.
template <class Item>
__device__ __forceinline__ void copy_keys(std::uint32_t (&to)[kMostKeys][kRowWords],
                                          const Item* from, std::int64_t stride, int keys,
                                          int thread) {
  constexpr int kVectors = kMeanDim / 8;  // of a key
#pragma unroll 8
  for (int i = thread; i < keys * kVectors; i += kMeanThreads) {
    const int key = i / kVectors;
    const int vector = i % kVectors;
    const uint4 items = *reinterpret_cast<const uint4*>(from + key * stride + vector * 8);
    std::uint32_t* const row = to[key] + vector * 4;
    row[0] = items.x;
    row[1] = items.y;
    row[2] = items.z;
    row[3] = items.w;
  }
}

template <class Item>
__global__ void __launch_bounds__(kMeanThreads)
    means_kernel(const __grid_constant__ MeanParams params) {
  __shared__ float mean[kMeanDim];
  __shared__ int alike;
  __shared__ std::uint32_t words[kMostKeys][kRowWords];
  const Pairs& p = params.pairs;
  const auto head = static_cast<int>(blockIdx.y);
  const auto thread = static_cast<int>(threadIdx.x);
  const std::int64_t tiles = total_tiles(p);
  for (std::int64_t i = blockIdx.x; i < tiles; i += gridDim.x) {
    const TilePlace place = place_of_tile(p, i);
    const RequestRecord& request = p.requests[place.request];
    const int first = place.tile * p.keys;
    const auto* keys = static_cast<const Item*>(params.k.data) +
                       (request.k_begin + first) * params.k.stride_t + head * params.k.stride_h;
    const int count = min(p.keys, request.seqlen_k - first);
    copy_keys(words, keys, params.k.stride_t, count, thread);
    __syncthreads();
    average_keys<kMeanDim, kMeanThreads>(
        count, mean, alike, thread,
        [&](int key, int column) {
          return to_float(reinterpret_cast<const Item*>(words[key])[column]);
        },
        [] { __syncthreads(); });
    params.means[(head * params.tiles + i) * kMeanDim + thread] = mean[thread];
    __syncthreads();
  }
}

}  // namespace

void launch_means(const MeanParams& params, cudaStream_t stream) {
  launch_kernel(means_kernel<ItemOf<Storage::Bf16>>,
                {.grid = dim3(static_cast<unsigned>(std::min(params.tiles, kMaxMeanCtas)),
                              static_cast<unsigned>(params.pairs.heads_kv)),
                 .block = dim3(kMeanThreads),
                 .stream = stream},
                params);
}

}  // namespace msa::cuda::common::backward
