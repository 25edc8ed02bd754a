// SPDX-License-Identifier: MIT
// What the runner of selections (select.cpp) hands to the bodies of generic/score.inl and
// generic/topk.inl: a tile of rows, what each row sees, and where scores or candidates go. Plain
// data; the table is filled once per level.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/geometry.h"
#include "cpu/candidates.h"
#include "cpu/group_values.h"
#include "msa/problem.h"
#include "msa/tensor.h"

namespace msa::cpu {

/// Requests with at most this many rows per index-key head are scored with the head dim in the
/// lanes, the others with rows in the lanes. The two sum in different orders, so the choice hangs
/// on the request's own shape alone.
inline constexpr std::int64_t kFewRows = 8;
/// Rows of a tile: enough to make the packing of a key block (1 % of the scores at 256) and its
/// trip from memory cheap.
inline constexpr std::int64_t kTileRows = 256;
inline constexpr std::int64_t kMaxLanes = 16;

/// Index keys of one request under one index-key head. Strides in bytes.
struct IndexKeys {
  const std::byte* data = nullptr;  // key 0 of the request (ragged) or of page 0
  std::int64_t token_stride = 0;
  std::int64_t page_stride = 0;
  std::int64_t page_size = 0;           // 0: ragged
  int page_shift = -1;                  // of a page size that is a power of two
  const std::int32_t* pages = nullptr;  // the request's row of the page table
  std::int64_t pages_stride = 0;        // in entries
  // Of codes: what scales key 0 or page 0, f32 of e4m3, e4m3 of e2m1; whoever shares one has a
  // stride of 0
  const std::byte* scales = nullptr;
  std::int64_t scale_token = 0;
  std::int64_t scale_page = 0;
  // Of e2m1: from group to group; what the codes of a group stand for; the scale of all
  std::int64_t scale_group = 0;
  const GroupValues* groups = nullptr;
  const float* global = nullptr;

  /// Key j; the 16 keys from a multiple of 16 on lie token_stride apart.
  const std::byte* key(std::int64_t j) const {
    if (page_size == 0) return data + j * token_stride;
    const std::int64_t page = page_of(j);
    return data + pages[page * pages_stride] * page_stride + (j - page * page_size) * token_stride;
  }
  /// What scales key j; those of the keys behind it lie scale_token apart, as key says.
  const std::byte* scale(std::int64_t j) const {
    if (page_size == 0) return scales + j * scale_token;
    const std::int64_t page = page_of(j);
    return scales + pages[page * pages_stride] * scale_page + (j - page * page_size) * scale_token;
  }
  /// Without a division where it can be: a walk asks for every run.
  std::int64_t page_of(std::int64_t j) const {
    return page_shift >= 0 ? j >> page_shift : j / page_size;
  }
};

/// Rows of one request that are scored together. Row r is the query token first_row + r over
/// `group`, and of the `group` heads that share the index-key head the rest of that division.
struct ScoreTile {
  const core::Request* request = nullptr;
  DType dtype = DType::BF16;      // of queries
  DType key_dtype = DType::BF16;  // dtype, E4M3 or E2M1
  bool pairs = false;             // of codes: bf16 holds every query and value
  IndexKeys keys{};
  const std::byte* q = nullptr;     // token 0 of the request, first head of the group
  std::int64_t q_token_stride = 0;  // in bytes
  std::int64_t q_head_stride = 0;
  std::int64_t dim = 0;
  std::int64_t group = 1;
  std::int64_t first_row = 0;
  std::int64_t num_rows = 0;  // at most kTileRows
  bool few_rows = false;      // the request has at most kFewRows rows
  bool scattered = false;     // only some blocks are read: nothing is asked for ahead
  core::Range blocks{};       // to be scored; 0 is the first block of the request here
};

/// The rows' state, arrays padded to a multiple of kMaxLanes. `visible` and `end` never decrease
/// from row to row.
struct TileRows {
  std::int64_t* visible = nullptr;  // keys that the row sees; padding: 0
  std::int64_t* end = nullptr;      // first block that the row need not score
  float* threshold = nullptr;       // a better score becomes a candidate; padding: kTakeNone
  std::int32_t* room = nullptr;     // candidates to keep
  std::int32_t* count = nullptr;    // candidates in the list
  Candidate* lists = nullptr;       // [rows, list_stride]
  std::int64_t list_stride = 0;
};

/// The 8-bit copy of a request's index keys under one index-key head, and its bounds.
struct FilterKeys {
  IndexKeys codes{};
  // {scale, error, norm} of page 0, or of the pool's first rows. Strides in floats
  const float* bounds = nullptr;
  std::int64_t page_stride = 0;
  std::int64_t item_stride = 1;
  std::int64_t first_row = 0;  // ragged: the pool's row that is key 0
  bool rotated = false;

  /// The bounds of key j.
  const float* bounds_of(std::int64_t j) const {
    const std::int64_t page = codes.page_size == 0
                                  ? (first_row + j) / kFilterRows
                                  : codes.pages[j / codes.page_size * codes.pages_stride];
    return bounds + page * page_stride;
  }
  /// The first key behind j that has others.
  std::int64_t end_of_bounds(std::int64_t j) const {
    if (codes.page_size != 0) return (j / codes.page_size + 1) * codes.page_size;
    return ((first_row + j) / kFilterRows + 1) * kFilterRows - first_row;
  }
};

/// What a filter knows of a tile's rows; arrays padded like those of TileRows, with zeros. See
/// filter.h.
struct FilterRows {
  std::int8_t* codes = nullptr;  // [rows, code_stride], zeros behind the dim
  std::int64_t code_stride = 0;  // a multiple of 64
  float* scale = nullptr;
  float* norm = nullptr;   // of the row; NaN where it is not finite
  float* error = nullptr;  // of its codes
  // a block is scored from its keys where its upper bound reaches this; NaN: none is
  float* least = nullptr;
  std::int32_t* wanted = nullptr;  // blocks that were
  float* upper = nullptr;          // [blocks, stride]: upper bounds of scores
  // [blocks, stride], where rows are in the lanes: bit i: the key of the block's best score may lie
  // in its i-th run of 16
  std::uint32_t* runs = nullptr;
  std::int64_t stride = 0;
  float* lower = nullptr;  // [rows / lanes, topk, lanes]: the largest lower bounds
  std::int64_t topk = 0;
};

/// Buffers of one thread.
struct TileBuffers {
  std::byte* q = nullptr;  // kTileRows rows of dim words
  std::byte* k = nullptr;  // a block of keys, dim words each
  // Where the keys of a block lie, padded to whole register tiles.
  const std::byte** keys = nullptr;
  // With a filter: what the sums of products of a block's codes begin with, and a few keys before
  // they are transposed
  std::int32_t* starts = nullptr;
  std::byte* rows = nullptr;
};

/// Where block_scores puts its result: token 0 of the request, first head of the group. Strides in
/// elements.
struct ScoreTarget {
  float* scores = nullptr;  // null: candidates go to the lists of TileRows
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t block_stride = 0;
};

/// One row of given scores.
struct ScoreRow {
  const float* scores = nullptr;  // of block 0
  std::int64_t stride = 1;
  core::Range blocks{};
  std::int64_t first_id = 0;  // id of block 0
};

struct SelectKernels {
  /// Scores the blocks of a tile that its rows need; writes them or collects candidates.
  void (*score_tile)(const ScoreTile&, const TileRows&, const TileBuffers&,
                     const ScoreTarget&) = nullptr;
  /// Bounds the scores of the same blocks by the codes: lower bounds become candidates, upper ones
  /// are written.
  void (*bound_tile)(const ScoreTile&, const FilterKeys&, const TileRows&, const FilterRows&,
                     const TileBuffers&) = nullptr;
  /// Scores the blocks whose upper bounds reach their row's `least`, with the bits of score_tile,
  /// and collects candidates.
  void (*score_wanted)(const ScoreTile&, const TileRows&, const FilterRows&,
                       const TileBuffers&) = nullptr;
  /// Collects the best `room` > 0 of given scores in `list`, of capacity candidate_capacity(room).
  /// Returns their number, which may exceed `room`.
  std::int64_t (*scan_scores)(const ScoreRow&, std::int64_t room, Candidate* list) = nullptr;
};

}  // namespace msa::cpu
