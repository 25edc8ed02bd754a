// SPDX-License-Identifier: MIT
// Joining shards as a stage: merge_states and merge_selections. One launch behind the status word;
// the strides and addresses of the parts travel by value.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "core/call.h"

namespace msa::cuda {

class MergeStage {
 public:
  /// Why the kernels do not serve the problem; empty: they do.
  static std::string rejects(const Problem& problem);

  /// The status word is clear.
  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const;
};

}  // namespace msa::cuda
