// SPDX-License-Identifier: MIT
// The interface between the runner of attention (attend.cpp) and its kernels (generic/attend.inl):
// what a call looks like to a kernel, one tile of it, its state and its scratch. Strides count
// elements, of keys in e2m1 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/geometry.h"
#include "cpu/group_values.h"
#include "cpu/storage.h"

namespace msa::cpu {

inline constexpr std::int64_t kMaxDim = 256;  // of queries, keys and values

/// Keys or values of all requests: ragged rows or pages.
struct KeyTensor {
  const std::byte* data = nullptr;
  std::int64_t page = 0;  // 0 when ragged
  std::int64_t row = 0;
  std::int64_t head = 0;
  // Of codes: the scales of a row and head, f32 of e4m3, e4m3 of e2m1. Whoever shares one has a
  // stride of 0.
  const std::byte* scales = nullptr;
  std::int64_t scale_page = 0, scale_row = 0, scale_head = 0;
  // Of e2m1: from group to group; what the codes of a group stand for; the scale of all.
  std::int64_t scale_group = 0;
  const GroupValues* groups = nullptr;
  const float* global = nullptr;
};

/// What is the same for all tiles of a call.
struct AttendCall {
  DType dtype = DType::BF16;
  DType kv_dtype = DType::BF16;  // of k and v: dtype, E4M3 or E2M1
  bool pairs = false;            // multiplied as pairs of bf16, which hold every query and value
  DType out_dtype = DType::BF16;
  std::int64_t group = 1;      // G: query heads of a KV head
  std::int64_t head_dim = 0;   // D
  std::int64_t value_dim = 0;  // Dv
  std::int64_t step = 0;       // keys of a visit: the block size, or kDenseStep
  float scale = 1.0f;          // softmax scale
  bool negate = false;         // queries are packed with flipped signs: the scale is negative
  bool attend = true;          // write out and lse; otherwise block maxima alone

  const std::byte* q = nullptr;  // [T, Hq, D]
  std::int64_t q_row = 0, q_head = 0;
  KeyTensor k{}, v{};
  const std::int32_t* page_table = nullptr;  // [B, pages]
  std::int64_t table_row = 0, table_col = 0;
  std::int64_t page_size = 0;  // 0: ragged

  const std::int32_t* ids = nullptr;  // [rows, Hkv, k]; null: dense
  std::int64_t ids_row = 0, ids_head = 0, ids_slot = 0;
  std::int64_t first_row = 0;  // the batch row of ids' first row
  std::int64_t topk = 0;

  std::byte* out = nullptr;  // [T, Hq, Dv]
  std::int64_t out_row = 0, out_head = 0;
  float* lse = nullptr;  // [T, Hq]; null: not wanted
  std::int64_t lse_row = 0, lse_head = 0;
  float* block_max = nullptr;  // [T, Hq, blocks]; null: not wanted
  std::int64_t max_row = 0, max_head = 0, max_block = 0;
  std::int64_t max_blocks = 0;
};

/// One block of keys and the tokens of the tile that attend to it.
struct Visit {
  std::int32_t block = 0;  // of the request, local: keys block * step ...
  std::int32_t first = 0;  // tokens[first .. first + count)
  std::int32_t count = 0;
};

inline constexpr std::int64_t kMaxHeads = 8;  // KV heads that one tile holds

/// Neighbouring query tokens of one request under one KV head, or under several that share their
/// visits. Row r of a head of the tile is token r / G, head r % G of the group.
struct AttendTile {
  core::Request request{};
  std::int64_t batch = 0;  // row of the page table
  std::int64_t head = 0;   // KV head, the first of `heads`
  std::int64_t heads = 1;
  std::int64_t token = 0;  // first token, inside the request
  std::int64_t tokens = 0;
  // What to visit, ascending: visits[begin .. end) of a sparse tile, or blocks begin .. end - 1 for
  // all tokens of a dense one.
  const Visit* visits = nullptr;
  const std::int32_t* visit_tokens = nullptr;
  std::int64_t begin = 0, end = 0;
  bool last = true;  // the tile's last piece of keys
  // log2 that weights are divided by, so that sums of the largest values stay finite
  float bias = 0.0f;
};

/// Running softmax of a tile, rows in lanes: columns of `lanes` rows.
struct AttendState {
  float* o = nullptr;  // [columns][Dv][lanes], not yet divided by l
  float* m = nullptr;  // [columns][lanes], largest raw score
  float* l = nullptr;  // [columns][lanes], sum of exponentials
};

/// Buffers of one thread; sizes in attend_scratch_sizes.
struct AttendScratch {
  std::byte* q = nullptr;  // packed queries: [heads][columns][words of D][lanes]
  std::byte* k = nullptr;  // packed keys of a block: [step][words of D]
  std::byte* v = nullptr;  // packed values of a block: [Dv / lanes][words of step, one more][lanes]
  // Scores of a few columns of lanes; also rows [lanes][max(D, Dv)] while packing and writing.
  float* s = nullptr;
  std::byte* p = nullptr;           // probabilities [a few columns][words of step][lanes]
  std::int32_t* visible = nullptr;  // [columns * lanes]: keys that a row sees
  std::int32_t* limits = nullptr;   // [columns * lanes]: those of the block in hand that it lists
  std::int32_t* active = nullptr;   // [columns]: columns of the block in hand
  // [3 * step + 1]: rows of keys, then of values, of the next block; rows of values of the one in
  // hand
  const std::byte** ahead = nullptr;
};

struct AttendKernels {
  int lanes = 0;
  int tile = 0;           // keys that a packed block is a multiple of
  int dense_rows = 256;   // of a dense tile: packing a block costs 1 % of its products
  int columns = 2;        // of scores and of probabilities that are kept at a time
  int words_of_bf16 = 1;  // bf16 values that a packed word holds: 2 where there are bf16 products
  /// Attends a piece of a tile; one state for each of its heads.
  void (*attend)(const AttendCall&, const AttendTile&, const AttendScratch&,
                 const AttendState* states) = nullptr;
  /// Joins the softmax of two disjoint pieces of the same tile's keys.
  void (*merge)(const AttendCall&, const AttendTile&, const AttendState& into,
                const AttendState& from) = nullptr;
  /// Writes out and lse of every row of one head. Lists in `suspects` the tokens of the tile with a
  /// sum of values that did not stay finite, and returns how many: a neighbour's key may have done
  /// it, or an overflow.
  std::int64_t (*finish)(const AttendCall&, const AttendTile&, const AttendScratch&,
                         const AttendState&, std::int32_t* suspects) = nullptr;
  /// Whether values that are finite made a sum that is not. For the whole tile of a lone token
  /// under one head, finished.
  bool (*overflows)(const AttendCall&, const AttendTile&, const AttendScratch&,
                    const AttendState&) = nullptr;
};

}  // namespace msa::cpu
