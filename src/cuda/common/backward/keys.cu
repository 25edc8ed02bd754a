// SPDX-License-Identifier: MIT
// Sums of dk and dv that one item alone does not finish. A thread a vector of a tile of keys.
#include <algorithm>

#include "cuda/common/backward/key_rows.cuh"
#include "cuda/common/backward/launch.h"
#include "cuda/common/storage.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::backward {
namespace {

constexpr int kKeyThreads = 256;
constexpr int kKeyCtas = 4;                 // that an SM holds
constexpr std::int64_t kPiecesAtOnce = 16;  // of a tile
constexpr std::int64_t kMaxFinishCtas = 4096;

template <class Item>
__device__ __forceinline__ void clear_row(const KeyRowsOut& to, std::int64_t row, int head,
                                          int head_dim, int lane) {
  if (to.rows.data == nullptr) return;
  for (int d = lane; d < head_dim; d += 32) {
    if (to.f32 != 0) {
      row_of<float>(to.rows, row, head)[d] = 0.0f;
    } else {
      row_of<Item>(to.rows, row, head)[d] = Item(0.0f);
    }
  }
}

/// A warp a (key row, KV head).
template <class Item>
__global__ void __launch_bounds__(kKeyThreads, kKeyCtas)
    clear_kernel(const __grid_constant__ KeyParams params) {
  const std::int64_t row = (std::int64_t{blockIdx.x} * kKeyThreads + threadIdx.x) / 32;
  if (row >= params.rows) return;
  const auto head = static_cast<int>(blockIdx.y);
  const int lane = static_cast<int>(threadIdx.x % 32);
  clear_row<Item>(params.dk, row, head, params.head_dim, lane);
  clear_row<Item>(params.dv, row, head, params.head_dim, lane);
}

/// visit(tile, output, index of dk and dv, vector) for every vector of `tiles` tiles whose output
/// is wanted. A CTA takes so many of a tile at a time as it has threads: a few tiles keep all busy.
template <class Visit>
__device__ __forceinline__ void for_each_vector(const KeyParams& params, std::int64_t tiles,
                                                const Visit& visit) {
  const int vectors = tile_vectors(params.pairs.keys, params.head_dim);
  const int pieces = params.pairs.tensors * vectors / kKeyThreads;  // whole ones
  for (std::int64_t i = blockIdx.x; i < tiles * pieces; i += gridDim.x) {
    const std::int64_t tile = i / pieces;
    const int at =
        static_cast<int>(i - tile * pieces) * kKeyThreads + static_cast<int>(threadIdx.x);
    const KeyRowsOut& to = at < vectors ? params.dk : params.dv;
    if (to.rows.data != nullptr) visit(tile, to, at, at < vectors ? at : at - vectors);
  }
}

/// Of the parts of a tile, in their order, the first at `from`. Several are read at a time.
__device__ __forceinline__ float4 sum_of_parts(const float4* from, int parts, std::int64_t stride) {
  constexpr int kAtOnce = 4;
  float4 sum = *from;
  for (int part = 1; part < parts; part += kAtOnce) {
    float4 more[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (part + i < parts) more[i] = from[(part + i) * stride];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (part + i < parts) add_to(sum, more[i]);
    }
  }
  return sum;
}

template <class Item>
__global__ void __launch_bounds__(kKeyThreads, kKeyCtas)
    join_kernel(const __grid_constant__ KeyParams params) {
  const Pairs& p = params.pairs;
  const std::int64_t stride = std::int64_t{p.tensors} * tile_vectors(p.keys, params.head_dim);
  const auto join = [&](std::int64_t i, const KeyRowsOut& to, int at, int vector) {
    const SplitTile split = params.work.splits[i];
    const float4 sum =
        sum_of_parts(reinterpret_cast<const float4*>(params.parts) + split.first_part * stride + at,
                     split.parts, stride);
    if (params.sums.data != nullptr) {
      const TilePlace place{split.request, split.tile};
      add_to(sums_of_tile(p, params.sums, split.head, place, params.head_dim)[at], sum);
    } else {
      store_vector<Item>(to, p.requests[split.request], split.head, split.tile * p.keys,
                         place_of_vector(vector, params.head_dim), sum);
    }
  };
  for_each_vector(params, params.work.counters->splits, join);
}

/// A head of keys has the number of the first head that shares it.
template <class Item>
__global__ void __launch_bounds__(kKeyThreads, kKeyCtas)
    finish_kernel(const __grid_constant__ KeyParams params) {
  const Pairs& p = params.pairs;
  const auto head = static_cast<int>(blockIdx.y);
  const auto store = [&](std::int64_t i, const KeyRowsOut& to, int at, int vector) {
    const TilePlace place = place_of_tile(p, i);
    const float4* sums =
        sums_of_tile(p, params.sums, head * p.shared_heads, place, params.head_dim);
    store_vector<Item>(to, p.requests[place.request], head, place.tile * p.keys,
                       place_of_vector(vector, params.head_dim), sums[at]);
  };
  for_each_vector(params, total_tiles(p), store);
}

}  // namespace

void launch_clear(Storage storage, const KeyParams& params, cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(params.pairs.heads_kv / params.pairs.shared_heads);
  with_item(storage, [&]<class Item>() {
    launch_kernel(
        clear_kernel<Item>,
        {.grid = dim3(static_cast<unsigned>(ceil_div(params.rows, kKeyThreads / 32)), heads),
         .block = dim3(kKeyThreads),
         .stream = stream},
        params);
  });
}

void launch_join(Storage storage, const KeyParams& params, int ctas, cudaStream_t stream) {
  with_item(storage, [&]<class Item>() {
    launch_kernel(join_kernel<Item>,
                  {.grid = dim3(static_cast<unsigned>(kKeyCtas * ctas)),
                   .block = dim3(kKeyThreads),
                   .stream = stream},
                  params);
  });
}

void launch_finish(Storage storage, const KeyParams& params, std::int64_t max_tiles,
                   cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(params.pairs.heads_kv / params.pairs.shared_heads);
  with_item(storage, [&]<class Item>() {
    launch_kernel(
        finish_kernel<Item>,
        {.grid = dim3(static_cast<unsigned>(std::min(kPiecesAtOnce * max_tiles, kMaxFinishCtas)),
                      heads),
         .block = dim3(kKeyThreads),
         .stream = stream},
        params);
  });
}

}  // namespace msa::cuda::common::backward
