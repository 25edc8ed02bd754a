// SPDX-License-Identifier: MIT
// An item from its blocks to its rows of the output: what decode attention and the mending of
// single rows share.
#pragma once

#include "cuda/common/decode/attend/join.cuh"
#include "cuda/common/decode/attend/producer.cuh"

namespace msa::cuda::common::decode {

/// An item from its blocks' tiles to its rows of the output. All threads of the CTA call it. In a
/// rehearsal one warp multiplies while another joins: code comes to all of them at the same time.
template <class Traits>
__device__ __forceinline__ void attend_item(const ParamsOf<Traits>& p, const RequestRecord& r,
                                            Item item, AttendShared<Traits>& shared,
                                            std::uint8_t* stages, RingPosition<Traits::kStages>& at,
                                            bool rehearsal, int warp, int lane) {
  constexpr int kMultiplier = 1, kJoiner = 2;  // of a rehearsal; warp 0 selects
  constexpr int kAside = 256;                  // floats that its selection may use
  static_assert((kAside + Traits::kConsumers * 16 * Traits::kMergePitch) * sizeof(float) <=
                    Traits::Engine::kRehearsalRoom * sizeof(std::uint32_t),
                "a rehearsal's candidates lie behind the shares");
  static_assert(!Traits::kCodes || Traits::Engine::kRehearsalRoom * sizeof(std::uint32_t) +
                                           Traits::kDim / 2 * sizeof(std::uint64_t) <=
                                       (Traits::kStages - 1) * Traits::kStageBytes,
                "and before the tile that it multiplies");
  if constexpr (Traits::kPacked) fill_value_table<Traits>(p, stages);
  Consumer<Traits> consumer(p, shared, stages, at, warp, lane);
  if (warp == Traits::kConsumers) {
    Producer<Traits>(p, shared, stages, at, lane).run(r, item, rehearsal);
  } else if (!rehearsal || warp == kMultiplier) {
    consumer.run(item, rehearsal);
  }
  if (rehearsal && warp != kJoiner) return;
  float* scratch = reinterpret_cast<float*>(stages) + kAside;
  meet(rehearsal);  // every warp has left the ring
  if (warp < Traits::kConsumers)
    publish_share<Traits>(consumer.state(), shared, scratch, threadIdx.x);
  meet(rehearsal);
  if (warp == Traits::kConsumers) return;
  RowEighth<Traits> part;
  join_warps<Traits>(part, shared, scratch, p.scale_log2, threadIdx.x);
  item = rehearsal ? Item{} : shared.item;  // read again rather than kept in registers
  using Engine = typename Traits::Engine;
  if constexpr (Engine::kClusters) {
    if (clusters(p.splits)) {
      if (!rehearsal) Engine::template exchange_parts<Traits>(p, item, part, shared, threadIdx.x);
      return Engine::template finish_rows<Traits>(p, item, shared, rehearsal,
                                                  rehearsal ? lane : threadIdx.x);
    }
  }
  constexpr bool kMerges = !Engine::kClusters;  // in a rehearsal, too
  if (rehearsal && !kMerges) return;
  const bool idle = kMerges && rehearsal;
  if (p.splits > 1 && !merge_splits<Traits>(part, p, item, shared, scratch, threadIdx.x, idle))
    return;
  const int member = item.tile * 16 + threadIdx.x / 8;
  if (member < p.group && !idle) {
    store_row<Traits>(p, part, item.row, item.head * p.group + member, part_column(threadIdx.x));
  }
}

}  // namespace msa::cuda::common::decode
