// SPDX-License-Identifier: MIT
// What the kernels of a backward pass are told: which (row, block) pairs there are, how they become
// work items, and where shares of gradients lie until they are added up. Host and device read the
// same.
#pragma once

#include <cstdint>

#include "cuda/common/invert/launch.h"
#include "cuda/params.h"

namespace msa::cuda::common::backward {

/// One tile of keys of one KV head, and some of the query tokens that attend to it.
struct WorkItem {
  int head;
  int request;
  int tile;   // of the request's keys
  int begin;  // listed: place in the inverse; else row of q
  int count;  // tokens
  int part;   // where its sums wait for those of the tile's other items; -1: it has none
};

/// A tile of keys whose tokens, of all heads at once, are more than one item's.
struct SplitTile {
  int head;  // the first of them
  int request;
  int tile;
  int first_part;
  int parts;
};

/// Counters of a launch, all 0 at its start.
struct Counters {
  int items;
  int taken;  // items that CTAs have begun
  int splits;
  int parts;
};

struct Work {
  Counters* counters = nullptr;
  WorkItem* items = nullptr;    // [max_items]
  int* order = nullptr;         // [max_items]: in which items are taken; none: as they stand
  SplitTile* splits = nullptr;  // [max_parts / 2], or none: shares of dk and dv are not wanted
  int max_items = 0;
  int max_parts = 0;
  int item_tokens = 1;          // at most, of an item
  const int* wanted = nullptr;  // 0: there are no items; or none
};

/// Heads that share tiles of keys and go in one launch.
inline constexpr int kMostHeadsAtOnce = 32;

/// The pairs of one launch. Every pair has a slot for its share of dq: tokens of the launch, KV
/// heads, places.
struct Pairs {
  BatchParams batch{};                         // block_size: of lists, or keys of a tile
  const RequestRecord* requests = nullptr;     // [B]
  const std::int64_t* first_blocks = nullptr;  // [B + 1]: blocks of the requests before
  int heads_kv = 1;
  int group = 1;
  // Heads of the launch: of each `shared_heads` that share a head of keys, `heads_at_once` from
  // number `turn` on.
  int shared_heads = 1;
  int heads_at_once = 1;
  int turn = 0;
  int tensors = 2;             // gradients of keys: dk and dv, or d_index_k
  int keys = 128;              // of a tile: a block has one or more
  std::int64_t row_begin = 0;  // rows of q of the launch
  std::int64_t row_end = 0;
  int places = 1;  // slots of a (token, KV head): blocks it may list, or that there are, in tiles
  int listed = 0;  // over block lists
  Lists lists{};
  // The inverse of the lists: [Hkv, blocks + 1], [Hkv, T * k] twice.
  invert::HeadRows row_ptr{};
  invert::HeadRows q_indices{};
  invert::HeadRows q_slots{};
};

/// Shares of dq, where it is wanted, in 16-bit steps (common/steps.cuh): `group` rows a slot, in an
/// order of their own (shares.cuh).
struct Shares {
  std::uint16_t* steps = nullptr;  // [slots, group, head_dim]
  float* sizes = nullptr;          // [slots, group, head_dim / part_dims]
  int part_dims = 32;              // columns of a row whose steps are of one size: 16 or 32
};

/// Sums of gradients of keys over all launches so far, tile after tile (key_rows.cuh).
struct KeySums {
  float* data = nullptr;   // [heads of keys, tiles, tensors, keys, head_dim], or none
  std::int64_t tiles = 0;  // planned, of all requests
};

/// A gradient of keys or values in the caller's memory.
struct KeyRowsOut {
  Rows<void> rows{};   // [N, Hkv, D]; data nullptr: not wanted
  int f32 = 0;         // items are floats; else as keys are
  int accumulate = 0;  // added to what is there
};

/// What the student of the index loss gives to the keys of one tile: the largest logarithm, to base
/// 2, and the sum of powers against it.
struct StudentShare {
  float top;
  float sum;
};

}  // namespace msa::cuda::common::backward
