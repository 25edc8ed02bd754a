// SPDX-License-Identifier: MIT
// Where sums of dk and dv lie: tiles of them in the order of the threads that make them, and rows
// of the caller's. A warp has 16 keys; a thread two of them, 8 apart, and two neighbours of every 8
// columns: four numbers, one vector.
#pragma once

#include "cuda/common/backward/tiles.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/rows.cuh"

namespace msa::cuda::common::backward {

/// Vectors of a tile of dk, or of dv.
__device__ __forceinline__ int tile_vectors(int keys, int head_dim) { return keys * head_dim / 4; }

__device__ __forceinline__ int vector_of(int warp, int columns, int lane, int head_dim) {
  return (warp * (head_dim / 8) + columns) * 32 + lane;
}

/// The first of the two keys of a vector, and the first of its two columns.
struct VectorPlace {
  int key;
  int column;
};
__device__ __forceinline__ VectorPlace place_of_vector(int vector, int head_dim) {
  const int lane = vector % 32;
  const int columns = vector / 32 % (head_dim / 8);
  const int warp = vector / 32 / (head_dim / 8);
  return {warp * 16 + lane / 4, columns * 8 + lane % 4 * 2};
}

/// Vectors of a tile's sums over all launches; those of dv follow those of dk.
__device__ __forceinline__ float4* sums_of_tile(const Pairs& p, const KeySums& sums, int head,
                                                const TilePlace& place, int head_dim) {
  const std::int64_t tile =
      head / p.shared_heads * sums.tiles + first_tile(p, place.request) + place.tile;
  return reinterpret_cast<float4*>(sums.data) + tile * p.tensors * tile_vectors(p.keys, head_dim);
}

template <class Item>
__device__ __forceinline__ void store_pair(Item* to, float x, float y, bool accumulate) {
  if (accumulate) {
    x += to_float(to[0]);
    y += to_float(to[1]);
  }
  to[0] = Item(x);
  to[1] = Item(y);
}

/// A vector of a tile becomes items of the caller's rows, those of keys that there are.
template <class Item>
__device__ __forceinline__ void store_vector(const KeyRowsOut& to, const RequestRecord& request,
                                             int head, int first_key, const VectorPlace& place,
                                             const float4& sums) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = first_key + place.key + 8 * half;
    if (key >= request.seqlen_k) continue;
    const std::int64_t row = request.k_begin + key;
    const float x = half == 0 ? sums.x : sums.z;
    const float y = half == 0 ? sums.y : sums.w;
    if (to.f32 != 0) {
      store_pair(row_of<float>(to.rows, row, head) + place.column, x, y, to.accumulate != 0);
    } else {
      store_pair(row_of<Item>(to.rows, row, head) + place.column, x, y, to.accumulate != 0);
    }
  }
}

__device__ __forceinline__ void add_to(float4& sum, const float4& more) {
  sum.x += more.x;
  sum.y += more.y;
  sum.z += more.z;
  sum.w += more.w;
}

}  // namespace msa::cuda::common::backward
