// SPDX-License-Identifier: MIT
// What a pass over gradients walks: tiles of neighbouring query tokens with the blocks that they
// attend to, and blocks of keys with the tokens that attend to them, over the lists of block ids or
// over all visible keys.
#pragma once

#include <cstdint>
#include <span>

#include "core/call.h"
#include "cpu/backward_kernels.h"
#include "cpu/scratch.h"

namespace msa::cpu {

/// A request, and where its tiles and blocks stand among those of all.
struct Job {
  core::Request request;
  std::int64_t tiles_before = 0, tiles = 0;
  std::int64_t blocks_before = 0, blocks = 0;
};

/// Buffers of one thread.
struct VisitScratch {
  std::uint64_t* pairs = nullptr;  // block << 32 | token of the tile
  Visit* visits = nullptr;
  std::int32_t* tokens = nullptr;
};

/// The walk of one plan; what it learns of a call lies in the workspace.
class BackwardWalk {
 public:
  BackwardWalk(const Problem& problem, bool sparse, std::int64_t tile_tokens);

  std::int64_t tile_tokens() const { return tile_tokens_; }
  bool sparse() const { return sparse_; }
  VisitScratch take_thread(Scratch& from) const;

  /// Of one call.
  struct Run {
    Job* room = nullptr;
    std::int64_t* starts = nullptr;  // [Hkv, blocks + 1], sparse: of each block's tokens
    std::int32_t* tokens = nullptr;  // [Hkv, T * k], sparse: of their request, ascending
    std::span<const Job> jobs{};
    std::int64_t tiles() const {
      return jobs.empty() ? 0 : jobs.back().tiles_before + jobs.back().tiles;
    }
    std::int64_t blocks() const {
      return jobs.empty() ? 0 : jobs.back().blocks_before + jobs.back().blocks;
    }
    /// Rows of q that requests own.
    std::int64_t rows() const {
      return jobs.empty() ? 0 : jobs.back().request.q_begin + jobs.back().request.seqlen_q;
    }
  };
  Run take(Scratch& from) const;
  void read(const core::Call& call, Run& run) const;
  /// Makes the inverse of the lists under one head.
  void invert(const core::Call& call, const Run& run, std::int64_t head) const;

  QueryTile tile(const core::Call& call, const Run& run, std::int64_t index, std::int64_t head,
                 const VisitScratch& scratch) const;
  KeyBlock block(const Run& run, std::int64_t index, std::int64_t head) const;

 private:
  void list_visits(const core::Call& call, QueryTile& tile, const VisitScratch& scratch) const;

  Problem p_;
  bool sparse_;
  std::int64_t tile_tokens_;
  std::int64_t max_blocks_;  // of a request
};

/// Zeros in rows [begin, end) of a gradient.
void clear_gradient(const RowTensor& t, DType dtype, std::int64_t heads, std::int64_t dim,
                    std::int64_t begin, std::int64_t end);
/// Zeros in the rows of keys that no request owns.
void clear_unowned(const RowTensor& t, DType dtype, std::int64_t heads, std::int64_t dim,
                   std::span<const Job> jobs, std::int64_t rows);

/// What products by tiles take of `keys` keys, a multiple of kTileKeys.
PairedKeys take_tile_keys(Scratch& from, std::int64_t keys, std::int64_t dim);
PairedRows take_tile_rows(Scratch& from, std::int64_t dim);

RowTensor row_tensor(const Tensor& t);
NumberTensor number_tensor(const Tensor& t);

}  // namespace msa::cpu
