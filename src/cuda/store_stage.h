// SPDX-License-Identifier: MIT
// Storing new keys as a stage: quantize_kv and quantize_index. The prologue where there are
// requests, then one kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "core/call.h"
#include "cuda/layout.h"

namespace msa::cuda {

class StoreStage {
 public:
  StoreStage(const Problem& problem, Layout& layout);

  /// Whether the call has a batch. Rows that go to rows have none.
  static bool has_requests(const Problem& problem);

  /// With requests it clears the status word first; without, the status word is clear.
  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const;

 private:
  Piece<RequestRecord> requests_{};
};

}  // namespace msa::cuda
