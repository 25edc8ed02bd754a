// SPDX-License-Identifier: MIT
// Block scores, and selection over a bounded scratch of them: scoring and top-k alternate over
// chunks of query tiles.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/sm90/select/query_tile.h"
#include "cuda/sm90/topk/launch.h"

namespace msa::cuda::sm90::select {

inline constexpr int kTileRows = 192;  // rows (token, index head) of one query tile
inline constexpr int kTileKeys = 128;  // keys of one key tile

/// One launch of the scoring kernel: num_tiles * spans * groups items, taken in turn by the CTAs.
struct ScoreParams {
  BatchParams batch{};
  const QueryTile* tiles = nullptr;  // [num_tiles]
  std::int64_t num_tiles = 0;
  unsigned* next_item = nullptr;  // 0 before the launch
  std::int64_t span = 0;          // key tiles of one item, a multiple of 4
  int spans = 1;                  // items of one tile
  int groups = 1;                 // index-K heads
  bool tile_major = false;        // items of a tile follow each other; else items of a span do
  int heads = 1;                  // index heads of one index-K head

  const void* queries = nullptr;  // [T, Hi, Di], innermost stride 1
  std::int64_t query_stride_token = 0;
  std::int64_t query_stride_head = 0;
  bool queries_paired = true;  // address and strides allow 4-byte reads

  float* scores = nullptr;  // the caller's [T, Hi, columns], or the scratch
  std::int64_t columns = 0;
  std::int64_t stride_token = 0;
  std::int64_t stride_head = 0;  // scratch: between rows, a multiple of 4
  std::int64_t stride_block = 1;
};

/// How a problem is cut; from host numbers alone.
struct SelectPlan {
  int heads = 1;   // index heads of one index-K head
  int groups = 1;  // index-K heads
  int tokens_per_tile = 0;
  std::int64_t num_tiles = 0;    // slots of the tile table
  std::int64_t chunk_tiles = 0;  // tiles scored before their top-k
  std::int64_t span = 0;         // key tiles of one item
  int spans = 1;
  bool tile_major = false;
  std::int64_t columns = 0;         // blocks of the longest request
  std::int64_t scratch_stride = 0;  // floats of one row of the scratch; 0: no scratch
  bool split_rows = false;          // several warps a row in the top-k
  int ctas = 1;                     // of the scoring kernel: one a multiprocessor
};

struct SelectShape {
  std::int64_t total_q = 0;
  std::int64_t max_seqlen_q = 0;
  std::int64_t max_seqlen_k = 0;
  std::int64_t batch = 1;
  int index_heads = 1;
  int index_heads_k = 1;
  int block_size = 128;
  bool causal = true;
  bool scratch = true;  // select_blocks; false: block_scores
};

/// At most `scratch_limit` bytes of scratch, at least one tile.
SelectPlan plan_select(const SelectShape& shape, int multiprocessors, std::int64_t scratch_limit);

/// Slots of the tile table that a call of `total_q` rows and `batch` requests can fill: of the
/// call, not of the plan, which may be made for far longer prompts.
std::int64_t tiles_of_call(const SelectPlan& plan, std::int64_t total_q, std::int64_t batch);

/// Rounds of scoring and top-k over `tiles`.
std::int64_t num_chunks(const SelectPlan& plan, std::int64_t tiles);

/// Bytes: the tile table, a counter for each chunk, then the scratch.
std::int64_t workspace_bytes(const SelectPlan& plan);

struct Queries {
  const void* data = nullptr;
  std::int64_t stride_token = 0;
  std::int64_t stride_head = 0;
  bool bf16 = true;
  int dim = 128;
};

struct ScoresOut {
  float* data = nullptr;
  std::int64_t columns = 0;
  std::int64_t stride_token = 0;
  std::int64_t stride_head = 0;
  std::int64_t stride_block = 1;
};

/// block_scores. `key_map` has boxes of box_tokens(kTileKeys, page_size) keys.
void launch_block_scores(const SelectPlan& plan, const BatchParams& batch, const Queries& queries,
                         const CUtensorMap& key_map, const ScoresOut& out, void* workspace,
                         cudaStream_t stream);

/// select_blocks. Of `out`, the ids, the chosen scores and k are read.
void launch_select_blocks(const SelectPlan& plan, const BatchParams& batch, const Queries& queries,
                          const CUtensorMap& key_map, const topk::TopkParams& out, void* workspace,
                          cudaStream_t stream);

/// One launch of the scoring kernel for its instance.
template <bool kBf16, int kDim>
void launch_scores(const ScoreParams& params, const CUtensorMap& key_map, bool scratch, int ctas,
                   cudaStream_t stream);

}  // namespace msa::cuda::sm90::select
