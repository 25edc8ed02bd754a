// SPDX-License-Identifier: MIT
// The numbers that planning weighs: in one place, pure, made from what is known of a GPU. Where a
// number was measured stands beside it in tuning.cpp.
#pragma once

#include <cstdint>

namespace msa::cuda {

struct GpuInfo;  // device.h

struct Tuning {
  int multiprocessors = 1;

  // Attention.
  std::int64_t list_bytes = 0;     // of the lists of one launch
  std::int64_t split_waves = 0;    // tiles a CTA from which on they balance by themselves
  std::int64_t most_splits = 0;    // of a tile
  std::int64_t item_steps = 0;     // what a tile costs beside its blocks, in blocks
  std::int64_t combine_steps = 0;  // what joining splits costs, in blocks
  double list_factor = 0;          // lists longer than so many times k go keys-outermost
  std::int64_t partial_bytes = 0;  // of a chunk of keys-outermost attention
  std::int64_t inverse_bytes = 0;  // of the inverse of its lists
  std::int64_t unpack_bytes = 0;   // of keys and values in e4m3 unpacked before attention
  std::int64_t unpack_visits = 0;  // tiles that read a block, from which on that pays

  // Gradients.
  std::int64_t share_bytes = 0;  // of the shares of dq of a chunk
  std::int64_t part_bytes = 0;   // of sums of dk and dv of tiles that several items share
  std::int64_t sum_bytes = 0;    // of sums of dk and dv over chunks; beyond, scores are made twice

  // Selection.
  std::int64_t scratch_bytes = 0;         // of the scores of one chunk
  std::int64_t select_overhead = 0;       // what an item costs beside its key tiles, in key tiles
  std::int64_t select_full_waves = 0;     // query tiles an SM from which on whole ones balance
  std::int64_t select_most_waves = 0;     // of items
  std::int64_t filter_scratch_bytes = 0;  // of the products of a filter's codes, of one chunk
  std::int64_t filter_keys = 0;           // from which on a filter pays

  std::int64_t cached_bytes = 0;  // keys that stay in L2, read in any order

  // Decode: steps an SM from which on scoring does without attention that waits beside it.
  std::int64_t lone_steps = 0;

  // Decode with a filter.
  std::int64_t filter_parts = 0;  // of 32 keys, that a row leaves to be scored from its keys
  std::int64_t filter_bytes = 0;  // what could be read while one launch more is waited for

  // Decode of several tokens over unions of their lists.
  double memory_factor = 0;      // bytes that L2 gives while memory gives one
  std::int64_t union_bytes = 0;  // that L2 gives while lists are made and launches waited for

  friend bool operator==(const Tuning&, const Tuning&) = default;
};

Tuning tuning_for(const GpuInfo& gpu);

}  // namespace msa::cuda
