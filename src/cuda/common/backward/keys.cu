// SPDX-License-Identifier: MIT
// Sums of dk and dv that one item alone does not finish. A CTA a tile of keys.
#include <algorithm>

#include "cuda/common/backward/key_rows.cuh"
#include "cuda/common/backward/launch.h"
#include "cuda/common/storage.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::backward {
namespace {

constexpr int kKeyThreads = 256;
constexpr int kKeyCtas = 4;  // that an SM holds
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

/// visit(output, index of dk or dv, vector) for every vector of a tile whose output is wanted.
template <class Visit>
__device__ __forceinline__ void for_each_vector(const KeyParams& params, const Visit& visit) {
  const int vectors = tile_vectors(params.pairs.keys, params.head_dim);
  for (int i = static_cast<int>(threadIdx.x); i < params.pairs.tensors * vectors;
       i += kKeyThreads) {
    const KeyRowsOut& to = i < vectors ? params.dk : params.dv;
    if (to.rows.data != nullptr) visit(to, i, i < vectors ? i : i - vectors);
  }
}

template <class Item>
__global__ void __launch_bounds__(kKeyThreads, kKeyCtas)
    join_kernel(const __grid_constant__ KeyParams params) {
  const Pairs& p = params.pairs;
  const int splits = params.work.counters->splits;
  const int vectors = tile_vectors(p.keys, params.head_dim);
  for (int i = static_cast<int>(blockIdx.x); i < splits; i += static_cast<int>(gridDim.x)) {
    const SplitTile split = params.work.splits[i];
    const RequestRecord& request = p.requests[split.request];
    for_each_vector(params, [&](const KeyRowsOut& to, int at, int vector) {
      const float4* from = reinterpret_cast<const float4*>(params.parts) +
                           std::int64_t{split.first_part} * p.tensors * vectors + at;
      float4 sum = *from;
      for (int part = 1; part < split.parts; ++part)
        add_to(sum, from[std::int64_t{part} * p.tensors * vectors]);
      if (params.sums.data != nullptr) {
        add_to(sums_of_tile(p, params.sums, split.head, {split.request, split.tile},
                            params.head_dim)[at],
               sum);
      } else {
        store_vector<Item>(to, request, split.head, split.tile * p.keys,
                           place_of_vector(vector, params.head_dim), sum);
      }
    });
  }
}

/// A head of keys has the number of the first head that shares it.
template <class Item>
__global__ void __launch_bounds__(kKeyThreads, kKeyCtas)
    finish_kernel(const __grid_constant__ KeyParams params) {
  const Pairs& p = params.pairs;
  const std::int64_t tiles = total_tiles(p);
  const auto head = static_cast<int>(blockIdx.y);
  for (std::int64_t i = blockIdx.x; i < tiles; i += gridDim.x) {
    const TilePlace place = place_of_tile(p, i);
    const RequestRecord& request = p.requests[place.request];
    const float4* sums =
        sums_of_tile(p, params.sums, head * p.shared_heads, place, params.head_dim);
    for_each_vector(params, [&](const KeyRowsOut& to, int at, int vector) {
      store_vector<Item>(to, request, head, place.tile * p.keys,
                         place_of_vector(vector, params.head_dim), sums[at]);
    });
  }
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
    launch_kernel(finish_kernel<Item>,
                  {.grid = dim3(static_cast<unsigned>(std::min(max_tiles, kMaxFinishCtas)), heads),
                   .block = dim3(kKeyThreads),
                   .stream = stream},
                  params);
  });
}

}  // namespace msa::cuda::common::backward
