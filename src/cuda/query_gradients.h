// SPDX-License-Identifier: MIT
// Gradients of queries by Hopper's kernel over tiles of rows, as a part of the backward stage: the
// tiles, for lists their unions, what keys have in common, the kernel, and a kernel that mends what
// ended non-finite. Whole rows are in one tile's registers, so that nothing waits in the workspace
// to be added up.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "core/call.h"
#include "cuda/common/backward/launch.h"
#include "cuda/common/prologue/launch.h"
#include "cuda/device.h"
#include "cuda/key_tiles.h"
#include "cuda/layout.h"
#include "cuda/sm90/backward_queries/config.h"

namespace msa::cuda {

class QueryGradients {
 public:
  /// Whether there is a kernel, and tiles for it that are not mostly empty. `keys`: as the backward
  /// stage cuts them.
  static bool serves(const Problem& problem, const GpuInfo& gpu, const KeyTiles::Shape& keys);

  /// Whether lists of neighbouring tokens can share little: whether there are enough blocks.
  static bool lists_may_share_little(const Problem& problem, const KeyTiles::Shape& keys);

  QueryGradients(const Problem& problem, const GpuInfo& gpu, const KeyTiles::Shape& keys,
                 Layout& layout);

  /// What the run wants of the prologue.
  void ask(common::prologue::Params& front, void* workspace) const;
  /// What keys have in common, for kernels of others, too: [Hkv, mean_tiles(), D].
  const float* make_means(const core::Call& call, const common::backward::Pairs& pairs,
                          void* workspace, cudaStream_t stream) const;
  std::int64_t mean_tiles() const { return mean_tiles_; }
  int tokens_per_tile() const { return tokens_per_tile_; }
  Suspects suspects(void* workspace) const;

  /// Behind the prologue `front` and the means. `pairs`: of all rows. `unwanted`: whether there are
  /// gradients already, which are only to be mended; or none.
  void run(const Problem& problem, const core::Call& call, const common::prologue::Params& front,
           const common::backward::Pairs& pairs, const float* delta, const int* unwanted,
           void* workspace, cudaStream_t stream) const;
  std::string decisions() const;

 private:
  void run_tiles(const sm90::backward_queries::Params& params, const core::Call& call,
                 cudaStream_t stream) const;
  sm90::backward_queries::Params kernel_params(const Problem& problem, const core::Call& call,
                                               const common::prologue::Params& front,
                                               const common::backward::Pairs& pairs,
                                               const float* delta, void* workspace) const;

  bool lists_;
  int ctas_;
  int tokens_per_tile_;
  int max_tiles_;
  int chunk_tiles_;  // of one launch: bounds the memory of the lists
  bool heads_outermost_;
  std::int64_t mean_tiles_;
  std::int64_t heads_kv_;
  Piece<common::prologue::TileRecord> tiles_{};
  Piece<int> num_tiles_{};
  Piece<int> suspects_{};  // whether there are any, then a bit a (row, KV head)
  Piece<float> means_{};   // [Hkv, tiles of keys, D]
  Piece<common::attend::ListHeader> headers_{};
  Piece<common::attend::ListEntry> entries_{};
};

}  // namespace msa::cuda
