// SPDX-License-Identifier: MIT
// Decode on SM90: requests of one to eight query tokens. Three kernels: `score` (score/) writes
// block scores of the index branch, `select` (here) keeps the best of them, `attend` (attend/)
// walks a row's blocks: its own selection, a given list, or all of them. Whole MSA is score and
// attend: attend selects for itself.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/params.h"

namespace msa::cuda::common::decode {

inline constexpr int kMaxTokens = 8;    // of a request
inline constexpr int kMaxColumns = 32;  // tokens x index heads that share one index-key head
inline constexpr int kMaxTopk = 64;
inline constexpr int kSelectThreads = 128;
inline constexpr int kScoreStep = 128;  // keys that scoring takes at a time
inline constexpr int kPartKeys = 32;    // of a block, by one warp

/// How rows of orders (decode/order.cuh) are selected from; neighbours lie side by side, rows are
/// 16-byte aligned.
struct SelectParams {
  BatchParams batch{};
  const RequestRecord* records = nullptr;
  Rows<const std::uint32_t> orders{};
  int heads = 0;  // Hi
  int topk = 16;
  int token_slots = 1;  // planned tokens of a request, at least 1: the grid's share of each request
  int max_blocks = 0;   // planned bound: sizes the candidate list
  int lanes = 1;        // threads that share a maximum: select_lanes(...)
  Slots<int> ids{};     // [T, Hi, k], optional in msa
  Slots<float> chosen{};  // [T, Hi, k], optional
  // [T, Hi], optional, selection alone: -1, as no filter was read.
  Rows<int> candidates{};
};

inline constexpr int kSegmentBlocks = 12 * 1024;           // of a row, selected from at a time
inline constexpr std::int64_t kMostCandidates = 6 * 1024;  // both fill the ring of an attention CTA

/// Keys that may pass the bound: k groups of threads at most hold something above it.
constexpr std::int64_t select_candidates(int topk, std::int64_t max_blocks, int lanes) {
  constexpr std::int64_t kStep = std::int64_t{kSelectThreads} * 4;
  const std::int64_t keys = std::int64_t{topk} * 4 * lanes * ((max_blocks + kStep - 1) / kStep);
  return keys < 32 ? 32 : keys;  // a warp's worth at least
}

/// Blocks of a segment where rows are planned to have so many: whole 16-byte loads.
__host__ __device__ constexpr int segment_blocks(std::int64_t max_blocks) {
  return max_blocks < kSegmentBlocks ? static_cast<int>((max_blocks + 3) / 4 * 4) : kSegmentBlocks;
}

/// Shared memory of a selection alone: a segment, candidates. The less of it, the more rows side by
/// side.
constexpr std::int64_t select_scratch_bytes(int topk, std::int64_t max_blocks, int lanes) {
  return segment_blocks(max_blocks) * 4 + select_candidates(topk, max_blocks, lanes) * 8;
}

/// Of any selection.
inline constexpr std::int64_t kMostSelectScratch = kSegmentBlocks * 4 + kMostCandidates * 8;

/// Threads whose blocks share a maximum, where `room` bytes take the scratch. Few maxima are ranked
/// sooner, but leave a looser bound.
constexpr int select_lanes(int topk, std::int64_t max_blocks,
                           std::int64_t room = kMostSelectScratch) {
  return topk <= 16 && select_candidates(topk, max_blocks, 4) <= kMostCandidates &&
                 select_scratch_bytes(topk, max_blocks, 4) <= room
             ? 4
             : 1;
}

/// Sets a score tensor [total, heads, blocks] to -inf; launch_score then writes what exists.
void launch_fill(const Slots<float>& scores, std::int64_t total, int heads, std::int64_t blocks,
                 cudaStream_t stream);
void launch_select(const SelectParams& params, cudaStream_t stream);

}  // namespace msa::cuda::common::decode
