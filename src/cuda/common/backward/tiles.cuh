// SPDX-License-Identifier: MIT
// Tiles of keys of all requests, numbered one after the other, and which tokens attend to one.
#pragma once

#include "cuda/common/backward/params.h"
#include "cuda/geometry.cuh"

namespace msa::cuda::common::backward {

__device__ __forceinline__ int tiles_of_block(const Pairs& p) {
  return p.batch.block_size / p.keys;
}

/// Of all requests. A request's last block has all of its tiles.
__device__ __forceinline__ std::int64_t total_tiles(const Pairs& p) {
  return p.first_blocks[p.batch.batch] * tiles_of_block(p);
}

__device__ __forceinline__ std::int64_t first_tile(const Pairs& p, int request) {
  return p.first_blocks[request] * tiles_of_block(p);
}

struct TilePlace {
  int request;
  int tile;  // of the request
};

__device__ __forceinline__ TilePlace place_of_tile(const Pairs& p, std::int64_t number) {
  int low = 0;
  int high = p.batch.batch - 1;
  while (low < high) {  // last request that begins at the tile or before
    const int middle = (low + high + 1) / 2;
    if (first_tile(p, middle) <= number) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return {low, static_cast<int>(number - first_tile(p, low))};
}

__device__ __forceinline__ int& inverse_entry(const invert::HeadRows& rows, int head,
                                              std::int64_t i) {
  return rows.data[head * rows.stride_h + i * rows.stride_i];
}

/// First of the places begin .. end - 1 whose query is not before `row`; queries ascend.
__device__ __forceinline__ std::int64_t first_from(const Pairs& p, int head, std::int64_t begin,
                                                   std::int64_t end, std::int64_t row) {
  while (begin < end) {
    const std::int64_t middle = (begin + end) / 2;
    if (inverse_entry(p.q_indices, head, middle) < row) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

/// Of the share of dq that an item's tile has for `row` of q, in whose list its block has `place`.
__device__ __forceinline__ std::int64_t slot_of(const Pairs& p, const WorkItem& item, int row,
                                                int place) {
  const int tiles = tiles_of_block(p);
  return ((row - p.row_begin) * p.heads_kv + item.head) * p.places +
         (p.listed == 0 ? item.tile : place * tiles + item.tile % tiles);
}

struct Span {
  std::int64_t begin;
  std::int64_t end;
};

/// The tokens of the launch that listed the tile's block: places of the inverse.
__device__ __forceinline__ Span listed_tokens(const Pairs& p, int head, const TilePlace& place) {
  const std::int64_t block = p.first_blocks[place.request] + place.tile / tiles_of_block(p);
  const std::int64_t begin = inverse_entry(p.row_ptr, head, block);
  const std::int64_t end = inverse_entry(p.row_ptr, head, block + 1);
  if (p.row_begin == 0 && p.row_end >= p.batch.total_q) return {begin, end};
  const std::int64_t first = first_from(p, head, begin, end, p.row_begin);
  return {first, first_from(p, head, first, end, p.row_end)};
}

/// The tokens of the launch that see some key of the tile: rows of q.
__device__ __forceinline__ Span seeing_tokens(const Pairs& p, const TilePlace& place) {
  const RequestRecord& request = p.requests[place.request];
  const std::int64_t key = std::int64_t{place.tile} * p.keys;
  if (visible_keys(request, INT32_MAX, false) <= key) return {0, 0};
  const std::int64_t first =
      p.batch.causal != 0 ? clamp64(request.key_offset + key - request.offset, 0, request.seqlen_q)
                          : 0;
  const std::int64_t begin = max(request.q_begin + first, p.row_begin);
  return {begin, max(begin, min(request.q_begin + request.seqlen_q, p.row_end))};
}

__device__ __forceinline__ Span tokens_of_tile(const Pairs& p, int head, const TilePlace& place) {
  if (std::int64_t{place.tile} * p.keys >= p.requests[place.request].seqlen_k) return {0, 0};
  return p.listed != 0 ? listed_tokens(p, head, place) : seeing_tokens(p, place);
}

}  // namespace msa::cuda::common::backward
