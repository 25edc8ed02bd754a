// SPDX-License-Identifier: MIT
// Attention as a stage: dense, or over given block lists. Planning is pure; a run is, behind
// the prologue, for codes that many tiles read their unpacking, for lists the list builder, the
// attention kernel, and a kernel that mends what ended non-finite.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "core/call.h"
#include "cuda/common/attend/lists.h"
#include "cuda/common/decode/attend/launch.h"
#include "cuda/device.h"
#include "cuda/kvouter_stage.h"
#include "cuda/layout.h"
#include "cuda/mma_attention.h"
#include "cuda/sm90_attention.h"
#include "cuda/unpack_stage.h"

namespace msa::cuda {

/// `Kernels`: those of an instruction set, Sm90Attention or MmaAttention.
template <class Kernels>
class AttendStageOf {
 public:
  /// Why the kernels do not serve the problem; empty: they do. `lists`: over block lists.
  static std::string rejects(const Problem& problem, bool lists);

  static int tokens_of_tile(const Problem& problem, bool lists);

  AttendStageOf(const Problem& problem, const GpuInfo& gpu, bool lists, Layout& layout);

  /// What the run wants of the prologue.
  void ask(common::prologue::Params& front, void* workspace) const;
  /// Behind the prologue `front`. `block_ids` [T, Hkv, k] where the stage goes over lists.
  void run(const Problem& problem, const core::Call& call, const Tensor& block_ids,
           const common::prologue::Params& front, void* workspace, cudaStream_t stream) const;
  std::string decisions() const;
  /// See Path.
  std::span<int> suspects(std::int64_t rows, void* workspace) const;

  /// Workspace from here on is used by run() alone, not by the prologue.
  std::size_t run_begin() const { return run_begin_; }

 private:
  common::attend::Params attend_params(const Problem& problem, const core::Call& call,
                                       const common::prologue::Params& front,
                                       void* workspace) const;
  int launches(int tiles) const;
  void run_combine(const Problem& problem, const common::attend::Params& parts,
                   const common::attend::Params& whole, cudaStream_t stream) const;

  int tokens_per_tile_ = 0;
  std::int64_t heads_kv_ = 1;
  bool unpacks_ = false;
  Kernels kernels_;
  int max_tiles_ = 0;
  int chunk_tiles_ = 0;  // of one launch: bounds the memory of the lists
  int splits_ = 1;       // CTAs along the blocks of a tile, where there are few tiles
  bool heads_outermost_ = false;
  std::size_t run_begin_ = 0;
  Piece<common::prologue::TileRecord> tiles_{};
  Piece<int> num_tiles_{};
  Piece<std::int64_t> first_blocks_{};   // of each request; lists
  std::optional<UnpackStage> unpack_{};  // for the attention kernel alone
  std::optional<KvOuterStage> kvouter_{};
  Piece<int> suspects_{};    // whether there are any, then a bit a (row, KV head)
  Piece<float> part_out_{};  // [splits, T, Hq, D]
  Piece<float> part_lse_{};  // [splits, T, Hq]
  Piece<common::attend::ListHeader> headers_{};
  Piece<common::attend::ListEntry> entries_{};
};

using AttendStage = AttendStageOf<Sm90Attention>;
using MmaAttendStage = AttendStageOf<MmaAttention>;

/// Whether keys of one block may have different scales.
inline bool has_column_scales(const Format& kv) {
  return kv.scale == Scale::Page || kv.scale == Scale::Token;
}

/// What decode attention is told of the rows of `params` where it mends, but for where keys and
/// values lie. `block_ids`: walked where `lists`.
common::decode::AttendParams mended_rows(const common::attend::Params& params,
                                         const core::Call& call, bool lists,
                                         const Tensor& block_ids);

/// What builds the lists of the tiles of a launch.
common::attend::ListParams lists_of(const common::attend::Params& params, const Tensor& block_ids);

/// Bytes of keys and values of the longest request, all heads.
std::int64_t key_bytes(const Problem& problem);

/// softmax_scale or its default.
float scale_of(const Problem& problem);
/// Times log2(e): what kernels multiply scores by.
float scale_log2_of(const Problem& problem);

}  // namespace msa::cuda
