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

enum class Storage : int { Bf16, F16 };

/// A block-score row per (query row, head): scratch in the workspace or the caller's tensor.
struct ScoreRows {
  float* data = nullptr;
  std::int64_t stride_t = 0;
  std::int64_t stride_h = 0;
  std::int64_t stride_block = 1;
};

struct ScoreParams {
  BatchParams batch{};
  const RequestRecord* records = nullptr;  // [B]
  const void* index_q = nullptr;           // [T, Hi, Di]
  std::int64_t stride_q_t = 0;
  std::int64_t stride_q_h = 0;
  const void* index_k = nullptr;  // [N, Hik, Di] or [P, S, Hik, Di]
  std::int64_t stride_k_page = 0;
  std::int64_t stride_k_token = 0;
  std::int64_t stride_k_head = 0;
  int heads = 0;             // Hi
  int heads_k = 1;           // Hik
  int dim = 128;             // Di
  int blocks_per_slice = 4;  // blocks of one CTA
  int slices = 1;            // CTAs along the blocks of a request
  ScoreRows scores{};
};

/// How rows are selected from ScoreRows (stride_block 1, rows 16-byte aligned).
struct SelectParams {
  BatchParams batch{};
  const RequestRecord* records = nullptr;
  ScoreRows scores{};
  int heads = 0;  // Hi
  int topk = 16;
  int token_slots = 1;  // planned tokens of a request, at least 1: the grid's share of each request
  int max_blocks = 0;   // planned bound: sizes the candidate list
  int* ids = nullptr;   // [T, Hi, k], optional in msa
  std::int64_t stride_ids_t = 0;
  std::int64_t stride_ids_h = 0;
  std::int64_t stride_ids_slot = 1;
  float* chosen = nullptr;  // [T, Hi, k], optional
  std::int64_t stride_chosen_t = 0;
  std::int64_t stride_chosen_h = 0;
  std::int64_t stride_chosen_slot = 1;
};

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
  float* lse = nullptr;  // [T, Hq], optional
  std::int64_t stride_lse_t = 0;
  std::int64_t stride_lse_h = 0;
  int heads_kv = 0;
  int group = 1;  // G
  int tiles = 1;  // head_tiles(group)
  int dim = 128;  // D = Dv
  Blocks blocks = Blocks::All;
  int splits = 1;          // CTAs along the blocks of a row
  bool clustered = false;  // they form a cluster and merge in shared memory
  float scale_log2 = 0;    // softmax scale times log2(e), positive
  // Merge scratch, used when splits > 1 and not clustered: one slot a (row, KV head, tile of 16
  // query heads, split).
  float* partial_out = nullptr;     // [slots, 16, D], not normalised
  float2* partial_state = nullptr;  // [slots, 16]: maximum, sum
  unsigned* arrivals = nullptr;     // [rows x heads x tiles], zero before the launch
};

/// Tiles of 16 query heads in a group.
constexpr int head_tiles(int group) { return (group + 15) / 16; }

/// Bytes of merge scratch for `rows` query rows.
constexpr std::int64_t partial_slots(std::int64_t rows, int heads_kv, int group, int splits) {
  return splits > 1 ? rows * heads_kv * head_tiles(group) * splits : 0;
}

/// Blocks of one scoring CTA so that the planned batch fills the GPU a few times over.
int score_blocks_per_slice(std::int64_t batch, std::int64_t max_blocks, int heads_k,
                           int multiprocessors);

/// CTAs along a row's `max_entries` blocks.
int attend_splits(std::int64_t rows, int heads_kv, int group, std::int64_t max_entries,
                  int multiprocessors);

/// Whether the splits of a row merge as a cluster.
constexpr bool clusters(int splits) { return splits == 2 || splits == 4 || splits == 8; }

/// Sets a score tensor [total, heads, blocks] to -inf; launch_score then writes what exists.
void launch_fill(const ScoreRows& rows, std::int64_t total, int heads, std::int64_t blocks,
                 cudaStream_t stream);
void launch_score(Storage storage, const ScoreParams& params, cudaStream_t stream);
void launch_select(const SelectParams& params, cudaStream_t stream);
void launch_attend(Storage storage, const AttendParams& params, cudaStream_t stream);

}  // namespace msa::cuda::sm90::decode
