// SPDX-License-Identifier: MIT
// Work items of kernels that walk keys outermost: CTAs take them in turn.
#pragma once

#include "cuda/common/backward/params.h"

namespace msa::cuda::mma::cta {

/// The CTA's next item and its request, into shared memory; false: there is none. All threads call
/// it, or await_item(), and meet in it twice: meet(0), meet(1).
template <class Shared, class Meet>
__device__ __forceinline__ bool take_item(const common::backward::Pairs& pairs,
                                          const common::backward::Work& work, Shared& shared,
                                          Meet&& meet) {
  const int items = min(work.counters->items, work.max_items);
  meet(0);  // everybody is done with the item before
  if (threadIdx.x == 0) {
    shared.number = atomicAdd(&work.counters->taken, 1);
    if (shared.number < items) {
      shared.item = work.items[work.order != nullptr ? work.order[shared.number] : shared.number];
      shared.request = pairs.requests[shared.item.request];
    }
  }
  meet(1);
  return shared.number < items;
}

/// The same of threads that only learn of the item.
template <class Shared, class Meet>
__device__ __forceinline__ bool await_item(const common::backward::Work& work, const Shared& shared,
                                           Meet&& meet) {
  meet(0);
  meet(1);
  return shared.number < min(work.counters->items, work.max_items);
}

/// take_item() where all threads come the same way.
template <class Shared>
__device__ __forceinline__ bool take_item(const common::backward::Pairs& pairs,
                                          const common::backward::Work& work, Shared& shared) {
  return take_item(pairs, work, shared, [](int) { __syncthreads(); });
}

}  // namespace msa::cuda::mma::cta
