// SPDX-License-Identifier: MIT
// Keys-outermost sparse attention as part of the attention stage: takes over a launch's tiles where
// neighbouring queries share too few blocks for the union kernel. Which of the two works is decided
// on the device, from the union lists.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/call.h"
#include "cuda/layout.h"
#include "cuda/sm90/attend/config.h"
#include "cuda/sm90/kvouter/launch.h"
#include "cuda/tuning.h"

namespace msa::cuda {

class KvOuterStage {
 public:
  /// Whether the kernels fit the problem; where they do not, the union kernel serves any selection.
  static bool serves(const Problem& problem, const Tuning& tuning, int tokens_per_tile,
                     int max_tiles);

  KvOuterStage(const Problem& problem, const Tuning& tuning, int tokens_per_tile, int max_tiles,
               Layout& layout);

  /// Tiles whose union list is longer than this go keys-outermost.
  int longest_list() const { return longest_list_; }

  /// `first_blocks` [B + 1]: blocks of the requests before. The tiles of one attention launch that
  /// `params.list_headers` leaves to these kernels.
  void run(const Problem& problem, const core::Call& call, const Tensor& block_ids,
           const sm90::attend::Params& params, const std::int64_t* first_blocks, int ctas,
           void* workspace, cudaStream_t stream) const;

 private:
  /// How the tiles of a launch are cut, which bounds the memory of the partials.
  struct Chunks {
    int tiles;            // of a chunk
    std::int64_t chunks;  // of a launch
    std::int64_t slots;   // partials of a chunk
    std::int64_t rows;    // of a chunk's inverse
  };
  static Chunks chunks_of(const Problem& problem, const Tuning& tuning, int tokens_per_tile,
                          int max_tiles);

  Chunks chunks_;
  int longest_list_ = 0;
  Piece<int> counts_{};
  Piece<int> cursors_{};
  Piece<sm90::kvouter::Entry> entries_{};
  Piece<sm90::kvouter::WorkItem> items_{};
  Piece<uint4> partials_{};
  Piece<sm90::kvouter::PartialRow> partial_rows_{};
};

}  // namespace msa::cuda
