// SPDX-License-Identifier: MIT
// The attention kernels of every card from compute capability 8.0 on as the stage sees them.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "core/call.h"
#include "cuda/device.h"
#include "cuda/mma/attend/config.h"
#include "cuda/tuning.h"

namespace msa::cuda {

/// Sm90Attention says what these are.
class MmaAttention {
 public:
  static constexpr bool kKeysOutermost = false;
  static constexpr int kTileRows = mma::attend::kTileRows;

  static std::string rejects(const Problem& problem, bool lists);
  /// Codes of e4m3 always: the kernels multiply items.
  static bool unpacks(const Problem& problem, bool lists, int tokens_per_tile,
                      const Tuning& tuning);

  MmaAttention(const Problem& problem, const GpuInfo& gpu, bool lists, bool unpacks);

  bool walks_lists() const { return config_.walk == common::attend::Walk::Union; }
  int block() const { return block_; }
  int ctas() const;

  void attend(const common::attend::Params& params, const core::Call& call,
              cudaStream_t stream) const;
  void mend(const Problem& problem, const core::Call& call, const Tensor& block_ids,
            const common::attend::Params& params, cudaStream_t stream) const;

 private:
  mma::attend::Config config_;
  int block_ = 0;
  int multiprocessors_ = 0;
};

}  // namespace msa::cuda
