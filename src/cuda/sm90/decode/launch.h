// SPDX-License-Identifier: MIT
// Decode on SM90: requests of one to eight query tokens. Three kernels: `score` writes block scores
// of the index branch, `select` keeps the best of them, `attend` walks a row's blocks (its own
// selection, a given list, or all of them). Whole MSA is score and attend: attend selects for
// itself. Host-visible parameters and launches.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/params.h"

namespace msa::cuda::sm90::decode {

inline constexpr int kMaxTokens = 8;    // of a request
inline constexpr int kMaxColumns = 32;  // tokens x index heads that share one index-key head
inline constexpr int kMaxTopk = 64;
inline constexpr int kSelectThreads = 128;
inline constexpr int kScoreStep = 128;  // keys that scoring takes at a time

enum class Storage : int { Bf16, F16 };

/// A block-score row per (query row, head): scratch in the workspace or the caller's tensor.
struct ScoreRows {
  float* data = nullptr;
  std::int64_t stride_t = 0;
  std::int64_t stride_h = 0;
  std::int64_t stride_block = 1;
};

struct ScoreParams {
  CUtensorMap k_map{};  // rows of index keys, boxes of box_tokens(kScoreStep, page)
  BatchParams batch{};
  const RequestRecord* records = nullptr;  // [B]
  const void* index_q = nullptr;           // [T, Hi, Di]
  std::int64_t stride_q_t = 0;
  std::int64_t stride_q_h = 0;
  int heads = 0;               // Hi
  int heads_k = 1;             // Hik
  int dim = 128;               // Di
  int ctas = 1;                // that share the keys of one index-key head
  unsigned* claims = nullptr;  // [Hik], zero before the launch
  ScoreRows scores{};
  bool orders = false;  // for a selection: rows of orders (decode/order.cuh)
};

/// How rows of orders (decode/order.cuh) are selected from; neighbours lie side by side, rows are
/// 16-byte aligned.
struct SelectParams {
  BatchParams batch{};
  const RequestRecord* records = nullptr;
  const std::uint32_t* orders = nullptr;
  std::int64_t stride_orders_t = 0;
  std::int64_t stride_orders_h = 0;
  int heads = 0;  // Hi
  int topk = 16;
  int token_slots = 1;  // planned tokens of a request, at least 1: the grid's share of each request
  int max_blocks = 0;   // planned bound: sizes the candidate list
  int lanes = 1;        // threads that share a maximum: select_lanes(topk, max_blocks)
  int* ids = nullptr;   // [T, Hi, k], optional in msa
  std::int64_t stride_ids_t = 0;
  std::int64_t stride_ids_h = 0;
  std::int64_t stride_ids_slot = 1;
  float* chosen = nullptr;  // [T, Hi, k], optional
  std::int64_t stride_chosen_t = 0;
  std::int64_t stride_chosen_h = 0;
  std::int64_t stride_chosen_slot = 1;
};

inline constexpr int kSegmentBlocks = 12 * 1024;           // of a row, selected from at a time
inline constexpr std::int64_t kMostCandidates = 6 * 1024;  // both fill the ring of an attention CTA

/// Keys that may pass the bound: k groups of threads at most hold something above it.
constexpr std::int64_t select_candidates(int topk, std::int64_t max_blocks, int lanes) {
  constexpr std::int64_t kStep = std::int64_t{kSelectThreads} * 4;
  const std::int64_t keys = std::int64_t{topk} * 4 * lanes * ((max_blocks + kStep - 1) / kStep);
  return keys < 32 ? 32 : keys;  // a warp's worth at least
}

/// Threads whose blocks share a maximum. Few maxima are ranked sooner, but leave a looser bound.
constexpr int select_lanes(int topk, std::int64_t max_blocks) {
  return topk <= 16 && select_candidates(topk, max_blocks, 4) <= kMostCandidates ? 4 : 1;
}

/// Shared memory of a selection: a segment, candidates.
constexpr std::int64_t select_scratch_bytes(int topk, std::int64_t max_blocks, int lanes) {
  return kSegmentBlocks * 4 + select_candidates(topk, max_blocks, lanes) * 8;
}

/// Where the blocks of a row come from.
enum class Blocks : int {
  All,     // dense: every visible block
  Listed,  // sparse: `select.ids` is an input
  Scored,  // msa: selected from `select.scores`; written to `select.ids` where given
};

struct AttendParams {
  SelectParams select{};  // batch, records, and what `Blocks` needs
  CUtensorMap k_map{};    // boxes of box_tokens(block, page) x 64
  CUtensorMap v_map{};
  const void* q = nullptr;  // [T, Hq, D]
  std::int64_t stride_q_t = 0;
  std::int64_t stride_q_h = 0;
  void* out = nullptr;  // [T, Hq, D]
  std::int64_t stride_out_t = 0;
  std::int64_t stride_out_h = 0;
  bool out_f32 = false;
  bool out_vectors = false;  // 16-bit items whose rows start at multiples of 16 bytes
  float* lse = nullptr;      // [T, Hq], optional
  std::int64_t stride_lse_t = 0;
  std::int64_t stride_lse_h = 0;
  int heads_kv = 0;
  int group = 1;  // G
  int tiles = 1;  // head_tiles(group)
  int dim = 128;  // D = Dv
  Blocks blocks = Blocks::All;
  int splits = 1;        // CTAs along the blocks of a row
  int rehearsals = 0;    // CTAs, the first ones, that are there while scores are still computed
  float scale_log2 = 0;  // softmax scale times log2(e), positive
  // Merge scratch, where splits do not form a cluster: one slot a (row, KV head, tile of 16
  // query heads, split).
  float* partial_out = nullptr;     // [slots, 16, D], not normalised
  float2* partial_state = nullptr;  // [slots, 16]: maximum, sum
  unsigned* arrivals = nullptr;     // [rows x heads x tiles], zero before the launch
};

/// Tiles of 16 query heads in a group.
constexpr int head_tiles(int group) { return (group + 15) / 16; }

/// Whether the splits of a row form a cluster and merge in shared memory.
__host__ __device__ constexpr bool clusters(int splits) {
  return splits == 2 || splits == 4 || splits == 8;
}

/// Whether they merge through partials in memory.
__host__ __device__ constexpr bool uses_partials(int splits) {
  return splits > 1 && !clusters(splits);
}

/// Slots of partials for `rows` query rows.
constexpr std::int64_t partial_slots(std::int64_t rows, int heads_kv, int group, int splits) {
  return uses_partials(splits) ? rows * heads_kv * head_tiles(group) * splits : 0;
}

/// CTAs that share the keys of one index-key head: one an SM for all heads, no more than steps.
int score_ctas(std::int64_t batch, std::int64_t max_seqlen_k, int heads_k, int multiprocessors);

/// CTAs along a row's `max_entries` blocks.
int attend_splits(std::int64_t rows, int heads_kv, int group, std::int64_t max_entries,
                  int multiprocessors);

/// Sets a score tensor [total, heads, blocks] to -inf; launch_score then writes what exists.
void launch_fill(const ScoreRows& rows, std::int64_t total, int heads, std::int64_t blocks,
                 cudaStream_t stream);
void launch_score(Storage storage, const ScoreParams& params, cudaStream_t stream);
void launch_select(const SelectParams& params, cudaStream_t stream);
void launch_attend(Storage storage, const AttendParams& params, cudaStream_t stream);

}  // namespace msa::cuda::sm90::decode
