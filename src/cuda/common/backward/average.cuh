// SPDX-License-Identifier: MIT
// What keys have in common. Rows of dS add up to nearly nothing, so what rounding takes from one is
// multiplied by that; it is therefore given back (docs/kernels/backward.md).
#pragma once

#include "cuda/common/number.cuh"

namespace msa::cuda::common::backward {

__device__ __forceinline__ float finite_or_zero(float x) { return x - x == 0.0f ? x : 0.0f; }

/// The mean of `keys` keys in columns where it is larger than what keys differ by, 0 elsewhere; all
/// 0 where some key is nearer to 0 than to that. Numbers that are not finite count as 0. item(key,
/// column) is one of a key; `alike` lies in shared memory. kThreads threads call it and meet() in
/// it; `mean` is written at its end, but not yet seen by the others.
template <int kHeadDim, int kThreads, class Item, class Meet>
__device__ __forceinline__ void average_keys(int keys, float* mean, int& alike, int thread,
                                             const Item& item, const Meet& meet) {
  for (int column = thread; column < kHeadDim; column += kThreads) {
    float sum = 0.0f;
    float squares = 0.0f;
    for (int key = 0; key < keys; ++key) {
      const float x = finite_or_zero(item(key, column));
      sum += x;
      squares = fmaf(x, x, squares);
    }
    const float average = sum / static_cast<float>(keys);
    // Larger than what keys differ by?
    const bool finite = squares - squares == 0.0f;
    mean[column] = finite && 2.0f * average * sum > squares ? average : 0.0f;
  }
  if (thread == 0) alike = 1;
  meet();
  for (int key = thread; key < keys; key += kThreads) {
    float product = 0.0f;
    float square = 0.0f;
    for (int column = 0; column < kHeadDim; ++column) {
      product = fmaf(mean[column], finite_or_zero(item(key, column)), product);
      square = fmaf(mean[column], mean[column], square);
    }
    if (!(2.0f * product > square)) alike = 0;  // or not a number
  }
  meet();
  if (alike != 0) return;
  for (int column = thread; column < kHeadDim; column += kThreads) mean[column] = 0.0f;
}

}  // namespace msa::cuda::common::backward
