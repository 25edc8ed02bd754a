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

  void run_scores(const Problem& problem, const core::Call& call, void* workspace,
                  cudaStream_t stream) const;
  /// select_blocks or select_topk. `ids` [T, Hi, k]; `chosen` the same, or not given.
  void run_selection(const Problem& problem, const core::Call& call, const Tensor& ids,
                     const Tensor& chosen, void* workspace, cudaStream_t stream) const;
  std::string decisions() const;

 private:
  bool from_scores_ = false;  // select_topk
  sm90::select::SelectPlan plan_{};
  common::topk::TopkPlan topk_plan_{};
  Piece<std::byte> scratch_{};
};

}  // namespace msa::cuda
