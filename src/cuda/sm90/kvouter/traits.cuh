// SPDX-License-Identifier: MIT
// Tiles, shared memory and roles of the keys-outermost kernel.
#pragma once

#include "cuda/common/scales.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/sm90/kvouter/config.h"
#include "cuda/sm90/tile/descriptor.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace msa::cuda::sm90::kvouter {

/// What codes need beside the tiles.
template <bool kCodes, int kStages>
struct CodesShared {};
template <int kStages>
struct CodesShared<true, kStages> {
  ptx::Mbarrier codes[kStages];  // they are there, for the converter
  common::Folded<true> folded[kStages];
};

template <Config cfg>
struct Traits {
  using Item = common::ItemOf<cfg.storage>;
  // Codes: keys and values come as bytes, and the producer's idle warps widen them to Item in their
  // stage, once for all queries of an item.
  static constexpr bool kCodes = cfg.kv == Storage::E4m3;
  static constexpr int kKeyItems = panel_items(bits_of(cfg.kv));  // of a panel in flight
  static constexpr int kKeyPanels = kDim / kKeyItems;
  static constexpr int kConverterWarps = kCodes ? 3 : 0;
  // Warpgroups; two leave the tensor cores idle in every softmax.
  static constexpr int kConsumers = 3;
  static constexpr int kWarpgroupTokens = 4;  // 64 rows: one token a warp
  static constexpr int kTileTokens = kConsumers * kWarpgroupTokens;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kProducerRegisters = 48;
  static constexpr int kConsumerRegisters = 152;
  static_assert(kConsumers * kConsumerRegisters + kProducerRegisters <= 4 * 128,
                "registers of a CTA's four warpgroups");
  static_assert(kTileTokens * (kDim / kPanelItems) <= 32, "a lane gathers a panel of one query");
  static constexpr int kKeyStages = 2;
  static constexpr int kQueryStages = 2;
  static constexpr int kPanels = kDim / kPanelItems;
  static constexpr int kTokenBytes = kGroup * kPanelRowBytes;  // of one panel
  static constexpr int kQueryPanelBytes = kTileTokens * kTokenBytes;
  static constexpr int kQueryBytes = kPanels * kQueryPanelBytes;
  static constexpr int kBlockBytes = kBlock * kDim * 2;
  static constexpr int kLoadBytes = kBlock * kKeyPanels * kPanelRowBytes;  // in flight
  static_assert(cfg.kv == cfg.storage || kCodes, "keys and values are as queries, or codes");

  struct Shared : CodesShared<kCodes, kKeyStages> {
    alignas(1024) std::uint8_t k[kKeyStages][kBlockBytes];
    alignas(1024) std::uint8_t v[kKeyStages][kBlockBytes];
    alignas(1024) std::uint8_t q[kQueryStages][kQueryBytes];
    unsigned bad_boxes[kKeyStages];  // boxes with a bad page id: their keys do not count
    WorkItem items[kKeyStages];
    Ring<kKeyStages> kv_ring;
    Ring<kQueryStages> q_ring;
  };
  // Dynamic shared memory is not aligned to 1024.
  static constexpr int kSharedBytes = sizeof(Shared) + 1024;
  static_assert(kSharedBytes <= 232448, "227 KB a CTA");
};

}  // namespace msa::cuda::sm90::kvouter
