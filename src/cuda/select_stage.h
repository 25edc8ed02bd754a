// SPDX-License-Identifier: MIT
// The index branch as a stage: block scores, selection from index tensors, selection from scores in
// memory.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "core/call.h"
#include "cuda/device.h"
#include "cuda/layout.h"
#include "cuda/sm90/select/launch.h"

namespace msa::cuda {

class SelectStage {
 public:
  /// Why the kernels do not serve the problem's index branch (select_topk: its scores); empty: they
  /// do.
  static std::string rejects(const Problem& problem);

  SelectStage(const Problem& problem, const GpuInfo& gpu, Layout& layout);

  /// What the run wants of the prologue.
  void ask(common::prologue::Params& front, void* workspace) const;
  /// Behind the prologue `front`.
  void run_scores(const Problem& problem, const core::Call& call,
                  const common::prologue::Params& front, cudaStream_t stream) const;
  /// select_blocks or select_topk. `ids` [T, Hi, k]; `chosen` the same, or not given.
  void run_selection(const Problem& problem, const core::Call& call, const Tensor& ids,
                     const Tensor& chosen, const common::prologue::Params& front, void* workspace,
                     cudaStream_t stream) const;
  std::string decisions() const;

 private:
  sm90::select::Filter filter_of(const Problem& problem, const core::Call& call,
                                 void* workspace) const;

  bool from_scores_ = false;  // select_topk
  sm90::select::SelectPlan plan_{};
  int topk_tokens_ = 1;  // select_topk: of a tile
  bool split_rows_ = false;
  Piece<common::prologue::TileRecord> tiles_{};
  Piece<int> next_items_{};  // counters of each chunk
  Piece<float> scratch_{};
  Piece<int> list_parts_{};  // filtered: lists of a chunk
  Piece<int> list_blocks_{};
  Piece<int2> list_sizes_{};
};

}  // namespace msa::cuda
