// SPDX-License-Identifier: MIT
// Products of rows that do not all see the same keys, where the second factor may hold anything:
// 0 * NaN is NaN. Rows that see equally many keys are multiplied together, with zeros in place of
// all others; what comes out is kept for them, or for these keys, alone.
#pragma once

#include "cuda/common/tile/fragment.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/mma/tile/multiply.cuh"

namespace msa::cuda::mma {

/// All bits of the halves of a word that the two lowest bits name.
__device__ __forceinline__ std::uint32_t halves_of(unsigned bits) {
  return ((bits & 1) != 0 ? 0xffffu : 0u) | ((bits & 2) != 0 ? 0xffff0000u : 0u);
}

/// sums += a * b over 16 rows, of which row i sees keys below limits[i]; keys are the rows of sums,
/// from first_key on. load(b, n) brings columns 16 n and on.
template <class Item, int kItems, class Load>
__device__ __forceinline__ void add_seen(const int* limits, int first_key, int lane,
                                         const std::uint32_t (&a)[4], const Load& load,
                                         float (&sums)[kItems]) {
  const int row = common::fragment_column(lane);
  const int key = first_key + lane / 4;
  common::warp::for_each_alike(limits[lane % 16], 0xffffu, [&](int limit, unsigned rows) {
    if (limit <= first_key) return;
    const std::uint32_t low = halves_of(rows >> row);
    const std::uint32_t high = halves_of(rows >> (row + 8));
    const std::uint32_t own[4] = {a[0] & low, a[1] & low, a[2] & high, a[3] & high};
#pragma unroll
    for (int n = 0; n < kItems / 8; ++n) {
      std::uint32_t b[4];
      load(b, n);
      b[0] &= low;
      b[1] &= high;
      b[2] &= low;
      b[3] &= high;
      float d[8] = {};
      multiply_columns<Item>(d, 0, own, b);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (key + i / 2 % 2 * 8 < limit) sums[8 * n + i] += d[i];
      }
    }
  });
}

/// sums = a * b over keys, of which row i of sums sees those below limits[i]. load_a(a, k) and
/// load_b(b, k, n) bring keys 16 k and on.
template <class Item, int kItems, class LoadA, class LoadB>
__device__ __forceinline__ void multiply_seen(const int* limits, int keys, int lane,
                                              const LoadA& load_a, const LoadB& load_b,
                                              float (&sums)[kItems]) {
  common::warp::for_each_alike(limits[lane % 16], 0xffffu, [&](int limit, unsigned rows) {
    float d[kItems] = {};
#pragma unroll 1
    for (int k = 0; k < keys / 16 && 16 * k < limit; ++k) {
      // Keys that are seen, from this thread's first one on.
      const int left = limit - 16 * k - common::fragment_column(lane);
      const std::uint32_t low = halves_of(left > 1 ? 3u : (left > 0 ? 1u : 0u));
      const std::uint32_t high = halves_of(left > 9 ? 3u : (left > 8 ? 1u : 0u));
      std::uint32_t a[4];
      load_a(a, k);
#pragma unroll
      for (int n = 0; n < kItems / 8; ++n) {
        std::uint32_t b[4];
        load_b(b, k, n);
        b[0] &= low;
        b[1] &= high;
        b[2] &= low;
        b[3] &= high;
        multiply_columns<Item>(d, n, a, b);
      }
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if ((rows >> (lane / 4 + i / 2 % 2 * 8) & 1) != 0) sums[i] = d[i];
    }
  });
}

}  // namespace msa::cuda::mma
