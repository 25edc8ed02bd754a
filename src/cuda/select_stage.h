// SPDX-License-Identifier: MIT
// The index branch as a stage, on the scoring kernels of either instruction set: block scores,
// selection from index tensors, selection from scores in memory.
#pragma once

#include <cuda_runtime_api.h>

#include <optional>
#include <string>

#include "core/call.h"
#include "cuda/common/select/launch.h"
#include "cuda/device.h"
#include "cuda/layout.h"
#include "cuda/tuning.h"
#include "cuda/unpack_stage.h"

namespace msa::cuda {

/// Filtered: lists of a chunk.
struct FilterLists {
  Piece<int> parts{};
  Piece<int> blocks{};
  Piece<int2> sizes{};
};

/// The scoring kernels of sm90/, of mma/: what of a stage differs between instruction sets.
struct Sm90Scores;
struct MmaScores;

template <class Scores>
class SelectStageOf {
 public:
  /// Why the kernels do not serve the problem's index branch (select_topk: its scores); empty: they
  /// do.
  static std::string rejects(const Problem& problem);

  SelectStageOf(const Problem& problem, const GpuInfo& gpu, Layout& layout);

  /// What the run wants of the prologue.
  void ask(common::prologue::Params& front, void* workspace) const;
  /// Behind the prologue `front`.
  void run_scores(const Problem& problem, const core::Call& call,
                  const common::prologue::Params& front, void* workspace,
                  cudaStream_t stream) const;
  /// select_blocks or select_topk. `ids` [T, Hi, k]; `chosen` the same, or not given.
  void run_selection(const Problem& problem, const core::Call& call, const Tensor& ids,
                     const Tensor& chosen, const common::prologue::Params& front, void* workspace,
                     cudaStream_t stream) const;
  std::string decisions() const;

 private:
  void select(const Problem& problem, const core::Call& call, const Tensor& ids,
              const Tensor& chosen, const common::prologue::Params& front, void* workspace,
              cudaStream_t stream) const;

  bool from_scores_ = false;                  // select_topk
  std::optional<UnpackIndexStage> unpack_{};  // index keys in four or eight bits
  std::optional<Problem> unpacked_{};         // what is scored behind it
  common::select::SelectPlan plan_{};
  int topk_tokens_ = 1;  // select_topk: of a tile
  bool split_rows_ = false;
  Piece<common::prologue::TileRecord> tiles_{};
  Piece<int> next_items_{};  // counters of each chunk
  Piece<float> scratch_{};
  FilterLists lists_{};
};

extern template class SelectStageOf<Sm90Scores>;
extern template class SelectStageOf<MmaScores>;

using SelectStage = SelectStageOf<Sm90Scores>;
using MmaSelectStage = SelectStageOf<MmaScores>;

}  // namespace msa::cuda
