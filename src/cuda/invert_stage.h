// SPDX-License-Identifier: MIT
// The inverse of a selection as a stage: the prologue, then a stable counting sort.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "core/call.h"
#include "cuda/common/prologue/launch.h"
#include "cuda/layout.h"

namespace msa::cuda {

class InvertStage {
 public:
  /// Why the kernels do not serve the problem; empty: they do.
  static std::string rejects(const Problem& problem);

  InvertStage(const Problem& problem, Layout& layout);

  /// Clears the status word first.
  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const;
  std::string decisions() const;

 private:
  int tokens_per_tile_ = 1;
  int max_blocks_ = 0;  // of one request
  Piece<RequestRecord> requests_{};
  Piece<common::prologue::TileRecord> tiles_{};
  Piece<int> num_tiles_{};
  Piece<int> first_tiles_{};
  Piece<std::int64_t> first_blocks_{};
  Piece<int> counts_{};  // [tiles, Hkv, max_blocks]
};

}  // namespace msa::cuda
