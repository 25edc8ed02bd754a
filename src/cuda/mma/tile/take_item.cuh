// SPDX-License-Identifier: MIT
// Work items of kernels that walk keys outermost: CTAs take them in turn, in whatever order they
// come.
#pragma once

#include "cuda/common/backward/params.h"

namespace msa::cuda::mma::cta {

/// The CTA's next item and its request, into shared memory; false: there is none. All threads.
template <class Shared>
__device__ __forceinline__ bool take_item(const common::backward::Pairs& pairs,
                                          const common::backward::Work& work, Shared& shared) {
  const int items = min(work.counters->items, work.max_items);
  __syncthreads();  // everybody is done with the item before
  if (threadIdx.x == 0) {
    shared.number = atomicAdd(&work.counters->taken, 1);
    if (shared.number < items) {
      shared.item = work.items[shared.number];
      shared.request = pairs.requests[shared.item.request];
    }
  }
  __syncthreads();
  return shared.number < items;
}

}  // namespace msa::cuda::mma::cta
