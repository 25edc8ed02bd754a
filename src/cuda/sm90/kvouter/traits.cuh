// SPDX-License-Identifier: MIT
// Tiles, shared memory and roles of the keys-outermost kernel.
#pragma once

#include "cuda/sm90/kvouter/launch.h"
#include "cuda/sm90/tile/align.cuh"
#include "cuda/sm90/tile/descriptor.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace msa::cuda::sm90::kvouter {

template <class T>
struct Traits {
  using Item = T;
  static constexpr int kConsumers =
      3;  // warpgroups; two leave the tensor cores idle in every softmax
  static constexpr int kWarpgroupTokens = 4;  // 64 rows: one token a warp
  static constexpr int kTileTokens = kConsumers * kWarpgroupTokens;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kProducerRegisters = 48;
  static constexpr int kConsumerRegisters = 152;  // 3 x 152 + 48 <= 512
  static constexpr int kKeyStages = 2;
  static constexpr int kQueryStages = 2;
  static constexpr int kPanels = kDim / kPanelItems;
  static constexpr int kTokenBytes = kGroup * kPanelRowBytes;  // of one panel
  static constexpr int kQueryPanelBytes = kTileTokens * kTokenBytes;
  static constexpr int kQueryBytes = kPanels * kQueryPanelBytes;
  static constexpr int kBlockBytes = kBlock * kDim * 2;

  struct Shared {
    alignas(1024) std::uint8_t k[kKeyStages][kBlockBytes];
    alignas(1024) std::uint8_t v[kKeyStages][kBlockBytes];
    alignas(1024) std::uint8_t q[kQueryStages][kQueryBytes];
    unsigned bad_boxes[kKeyStages];  // boxes with a bad page id: their keys do not count
    WorkItem items[kKeyStages];
    Ring<kKeyStages> kv_ring;
    Ring<kQueryStages> q_ring;
  };
  static constexpr int kSharedBytes =
      sizeof(Shared) + 1024;  // dynamic shared memory is not aligned to 1024
  static_assert(kSharedBytes <= 232448, "227 KB a CTA");
};

}  // namespace msa::cuda::sm90::kvouter
