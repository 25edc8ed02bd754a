// SPDX-License-Identifier: MIT
// Hopper's attention kernels as the stage sees them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "core/call.h"
#include "cuda/device.h"
#include "cuda/sm90/attend/config.h"
#include "cuda/tuning.h"

namespace msa::cuda {

class Sm90Attention {
 public:
  static constexpr bool kKeysOutermost = true;  // they have a kernel for long lists beside
  static constexpr int kTileRows = sm90::attend::kTileRows;

  /// Why pages do not fit the kernels, or anything else that not every instruction set refuses.
  static std::string rejects(const Problem& problem, bool lists);

  /// Whether keys and values in e4m3 become items once, before attention, rather than in every tile
  /// that reads them. Looks at bounds only, and either way gives the same bits.
  static bool unpacks(const Problem& problem, bool lists, int tokens_per_tile,
                      const Tuning& tuning);

  Sm90Attention(const Problem& problem, const GpuInfo& gpu, bool lists, bool unpacks);

  bool walks_lists() const { return config_.walk == common::attend::Walk::Union; }
  /// Keys of one step.
  int block() const { return config_.block; }
  /// Items at work at once.
  int ctas() const { return ctas_; }

  /// Keys and values as `call` has them, whatever the problem says of them.
  void attend(const common::attend::Params& params, const core::Call& call,
              cudaStream_t stream) const;

  /// The rows whose tile ended non-finite, each by itself, from keys and values as they are stored.
  void mend(const Problem& problem, const core::Call& call, const Tensor& block_ids,
            const common::attend::Params& params, cudaStream_t stream) const;

 private:
  /// Maps of what `call` holds, keys and values in pages as `params` says.
  sm90::attend::Maps make_maps(const common::attend::Params& params, const core::Call& call) const;

  sm90::attend::Config config_;
  int ctas_ = 0;
};

}  // namespace msa::cuda
