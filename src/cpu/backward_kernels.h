// SPDX-License-Identifier: MIT
// The interface between the runner of backward passes (backward.cpp) and its kernels
// (generic/backward.inl). Strides count elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/geometry.h"
#include "cpu/attend_kernels.h"
#include "cpu/storage.h"

namespace msa::cpu {

/// A tensor whose first two dimensions are rows and heads.
struct RowTensor {
  std::byte* data = nullptr;
  std::int64_t row = 0, head = 0;
};

/// Numbers of rows and heads in f32.
struct NumberTensor {
  const float* data = nullptr;
  std::int64_t row = 0, head = 0;
  float at(std::int64_t r, std::int64_t h) const { return data[r * row + h * head]; }
};

/// Keys or values of a block in bf16, as tiles meet them. Padded with zeros: keys to a multiple of
/// 32, dims of `halves` too.
struct PairedKeys {
  std::uint16_t* halves = nullptr;  // [keys][dims]
  std::uint32_t* strips = nullptr;  // [D / 16][keys / 2][16], pairs of keys; null: not wanted
};

/// Rows of a chunk in bf16.
struct PairedRows {
  std::uint32_t* lanes = nullptr;   // [rows / 16][dims / 2][16], pairs of dims
  std::uint32_t* strips = nullptr;  // [D / 16][kBackwardRows / 2][16], pairs of rows 16 apart
};

/// to[column][key][16], key < seen (and up to 32 on), of one or two columns of rows.
struct PairScores {
  const std::uint16_t* keys = nullptr;
  const std::uint32_t* rows = nullptr;
  std::int64_t columns = 0, dim = 0, padded = 0, seen = 0;
  float* to = nullptr;
};

/// Weights, or gradients of scores, [column][padded][16], times strips of the other side.
struct PairSums {
  const float* weights = nullptr;
  const std::uint32_t* strips = nullptr;
  std::int64_t rows = 0, keys = 0, padded = 0, dim = 0;
  std::uint32_t* parts = nullptr;  // [2][part]: room for the weights as tiles
  std::int64_t part = 0;
  float* to = nullptr;  // [rows][dim] or [keys][dim]
};

/// The products of levels that multiply tiles of bf16 (generic/backward_tiles.inl), which have 16
/// lanes.
struct GradientTiles {
  void (*pack_keys)(const std::uint16_t* from, std::int64_t row, std::int64_t dim,
                    std::int64_t keys, std::int64_t padded, const PairedKeys& to) = nullptr;
  void (*pack_rows)(const std::uint16_t* const* from, std::int64_t rows, std::int64_t dim,
                    const PairedRows& to) = nullptr;
  void (*score)(const PairScores&) = nullptr;
  void (*queries)(const PairSums&) = nullptr;
  void (*keys)(const PairSums&) = nullptr;
};

/// Keys that tiles take at once.
inline constexpr std::int64_t kTileKeys = 32;

/// What is the same for all tasks of a call.
struct BackwardCall {
  DType dtype = DType::BF16;             // of q, k and v
  DType out_dtype = DType::BF16;         // of out and dout
  DType gradient_dtype = DType::BF16;    // of dq, dk and dv
  bool accumulate = false;               // dk and dv are added to what lies there
  std::int64_t heads = 1;                // Hq
  std::int64_t group = 1;                // G: query heads of a KV head
  std::int64_t head_dim = 0;             // D
  std::int64_t value_dim = 0;            // Dv
  std::int64_t step = 0;                 // keys of a block
  float scale = 1.0f;                    // softmax scale
  const GradientTiles* tiles = nullptr;  // null: products of fp32

  RowTensor q{}, k{}, v{}, out{}, dout{};
  NumberTensor lse{}, dlse{};
  float* rest = nullptr;  // [T, Hq]: dlse less the product of dout and out
  RowTensor dq{}, dk{}, dv{};
};

/// Neighbouring query tokens of one request under one KV head, and the blocks that they attend to.
struct QueryTile {
  core::Request request{};
  std::int64_t head = 0;
  std::int64_t token = 0, tokens = 0;
  const Visit* visits = nullptr;               // ascending
  const std::int32_t* visit_tokens = nullptr;  // of the tile
  std::int64_t count = 0;                      // visits
};

/// A block of keys under one KV head, and the query tokens that attend to it.
struct KeyBlock {
  core::Request request{};
  std::int64_t head = 0;
  std::int64_t block = 0;                // of the request, local
  const std::int32_t* tokens = nullptr;  // of the request, ascending; null: first_token and on
  std::int64_t first_token = 0;
  std::int64_t count = 0;
};

/// Rows of queries that are multiplied at once.
inline constexpr std::int64_t kBackwardRows = 64;

/// What products by tiles take of it.
struct TileScratch {
  PairedKeys k{}, v{};
  PairedRows q{}, dout{};
  const std::uint16_t** q_rows = nullptr;     // [kBackwardRows]
  const std::uint16_t** dout_rows = nullptr;  // [kBackwardRows]
  std::uint32_t* parts = nullptr;             // [2][kBackwardRows][keys / 2]
};

/// Buffers of one thread, in floats but for the limits.
struct BackwardScratch {
  float* k = nullptr;     // [keys][D]
  float* v = nullptr;     // [keys][Dv]
  float* q = nullptr;     // [D / lanes][kBackwardRows][lanes]
  float* dout = nullptr;  // [Dv / lanes][kBackwardRows][lanes]
  // The same, transposed: [kBackwardRows / lanes][D][lanes]
  float* q_lanes = nullptr;
  float* dout_lanes = nullptr;
  float* p = nullptr;              // weights [kBackwardRows / lanes][keys][lanes]
  float* ds = nullptr;             // gradients of scores, like p
  float* numbers = nullptr;        // [2][kBackwardRows]: lse in base 2, rest
  std::int32_t* limits = nullptr;  // [kBackwardRows]: keys of the block that a row sees
  std::int64_t* rows = nullptr;    // [kBackwardRows]: token * G + head of the group
  float* turn = nullptr;           // [2][D][lanes]; by tiles: [kBackwardRows][D]
  float* sums = nullptr;           // a tile's dq [rows][D]; a block's dk [keys][D], dv [keys][Dv]
  TileScratch tiles{};
};

/// index_loss: attention's weights, and an index branch whose gradients are those of an attention
/// with one query head to a list. `student.lse` lies in the workspace.
struct IndexLossCall {
  BackwardCall teacher{};             // q, k and lse alone
  BackwardCall student{};             // q, k, dq and dk are the index's
  std::int64_t shared = 1;            // index heads that read one index key head
  float* index_lse = nullptr;         // [T, Hi]
  const float* row_weight = nullptr;  // [T]; null: 1
  std::int64_t weight_row = 0;
  float* loss = nullptr;  // [T, Hi]; null: not wanted
  std::int64_t loss_row = 0, loss_head = 0;
};

/// Buffers of one thread.
struct IndexLossScratch {
  BackwardScratch teacher{}, student{};
  float* mean = nullptr;   // the teacher's weights, [kBackwardRows / lanes][keys][lanes]
  float* best = nullptr;   // [tokens of a tile]: largest score, in base 2
  float* sum = nullptr;    // [tokens of a tile]
  double* loss = nullptr;  // [tokens of a tile]
};

struct IndexLossKernels {
  /// index_lse, loss and d_index_q of a tile of tokens under one index head.
  void (*rows)(const IndexLossCall&, const QueryTile&, const IndexLossScratch&) = nullptr;
  /// d_index_k of a block under its key head: the rows that list it under one index head are added
  /// to those of the heads before, and after the last head the block is written.
  void (*keys)(const IndexLossCall&, const KeyBlock&, const IndexLossScratch&, bool first,
               bool last) = nullptr;
};

struct BackwardKernels {
  int lanes = 0;
  int tile = 0;  // keys of a register tile
  /// The rest of query rows [begin, end), all heads.
  void (*rest)(const BackwardCall&, std::int64_t begin, std::int64_t end) = nullptr;
  /// dq of a tile.
  void (*queries)(const BackwardCall&, const QueryTile&, BackwardScratch) = nullptr;
  /// dk and dv of a block.
  void (*keys)(const BackwardCall&, const KeyBlock&, BackwardScratch) = nullptr;
};

}  // namespace msa::cpu
