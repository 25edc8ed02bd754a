// SPDX-License-Identifier: MIT
// Which shares a row has: those of the tiles of keys that it attends to.
#pragma once

#include "cuda/common/backward/params.h"
#include "cuda/common/lists.cuh"

namespace msa::cuda::common::backward {

/// Reads lists of a row that sees so many keys.
__device__ __forceinline__ ListReader reader_of(const Pairs& p, const RequestRecord& request,
                                                int visible) {
  const int shift = __ffs(p.batch.block_size) - 1;  // divisions take long
  ListReader reader;
  reader.first = request.key_offset >> shift;
  if (request.total_k != kNoLimit)
    reader.legal = (request.total_k + p.batch.block_size - 1) >> shift;
  reader.blocks = (visible + p.batch.block_size - 1) >> shift;
  return reader;
}

/// Calls visit(place) for every place whose keys the row sees, in order; all lanes.
template <class Visit>
__device__ __forceinline__ void for_each_place(const Pairs& p, const RequestRecord& request,
                                               std::int64_t row, int head, int lane,
                                               const Visit& visit) {
  const int visible = visible_keys(request, row - request.q_begin, p.batch.causal != 0);
  if (p.listed == 0) {
    for (int place = 0; place * p.keys < visible; ++place) visit(place);
    return;
  }
  const int tiles = p.batch.block_size / p.keys;
  const ListReader reader = reader_of(p, request, visible);
  int first = 0;  // slot of lane 0
  warp::for_each_listed(p.lists, reader, row, head, lane, [&](int, const ListedBlock& listed) {
    unsigned slots = __ballot_sync(kAllLanes, listed.block >= 0);
    for (; slots != 0; slots &= slots - 1) {
      const int from = __ffs(static_cast<int>(slots)) - 1;
      const int block = __shfl_sync(kAllLanes, listed.block, from);
      for (int tile = 0; tile < tiles; ++tile) {
        if (std::int64_t{block} * p.batch.block_size + tile * p.keys < visible)
          visit((first + from) * tiles + tile);
      }
    }
    first += 32;
  });
}

/// The same places, each visited by one lane: which one, the list alone says.
template <class Visit>
__device__ __forceinline__ void for_each_own_place(const Pairs& p, const RequestRecord& request,
                                                   std::int64_t row, int head, int lane,
                                                   const Visit& visit) {
  const int visible = visible_keys(request, row - request.q_begin, p.batch.causal != 0);
  if (p.listed == 0) {
    for (int place = lane; place * p.keys < visible; place += 32) visit(place);
    return;
  }
  const int tiles = p.batch.block_size / p.keys;
  const ListReader reader = reader_of(p, request, visible);
  warp::for_each_listed(p.lists, reader, row, head, lane, [&](int slot, const ListedBlock& listed) {
    if (listed.block < 0) return;
    for (int tile = 0; tile < tiles; ++tile) {
      if (std::int64_t{listed.block} * p.batch.block_size + tile * p.keys < visible)
        visit(slot * tiles + tile);
    }
  });
}

}  // namespace msa::cuda::common::backward
