// SPDX-License-Identifier: MIT
// Scores of 64 rows against the parts that a filter has left of their tile's keys: four parts are
// multiplied as one key tile, by the very instructions of scores.cuh, so that a key's score has the
// same bits. What leaves is a row of the maxima of the listed blocks, in the order of the list.
#pragma once

#include "cuda/sm90/select/scores.cuh"

namespace msa::cuda::sm90::select {

/// Maxima of a row's listed blocks on their way to memory. Parts of a block follow each other.
template <class Traits>
class ListedWriter {
 public:
  __device__ __forceinline__ ListedWriter(const Params& p, const Work& work,
                                          const ConsumerRows& rows) {
    const int i = threadIdx.x & 1;
    writes_ = (i != 0 ? rows.valid[1] : rows.valid[0]) && (threadIdx.x & 2) == 0;
    row_ = reinterpret_cast<float4*>(
        p.scores.data +
        ((static_cast<std::int64_t>(work.slot) * p.groups + work.group) * Traits::kRows +
         (i != 0 ? rows.row[1] : rows.row[0])) *
            p.scores.stride_h);
  }

  /// Of a part of the list's block `slot`. What follows of a block is written once more.
  __device__ __forceinline__ void put(int slot, float maximum) {
    best_ = slot == slot_ ? fmaxf(best_, maximum) : maximum;
    slot_ = slot;
    const int at = slot % 4;
    pending_.x = at == 0 ? best_ : pending_.x;
    pending_.y = at == 1 ? best_ : pending_.y;
    pending_.z = at == 2 ? best_ : pending_.z;
    pending_.w = at == 3 ? best_ : pending_.w;
    if (at == 3) flush();
  }

  __device__ __forceinline__ void finish() { flush(); }

 private:
  __device__ __forceinline__ void flush() {
    if (writes_) row_[slot_ / 4] = pending_;
  }

  float4* row_;
  bool writes_;
  int slot_ = -1;
  float best_ = 0.0f;
  float4 pending_{};
};

/// What a warpgroup's rows make of the key tiles of their list.
template <class Traits>
class ListedRows {
 public:
  __device__ __forceinline__ ListedRows(const Params& p, const Work& work)
      : rows_(locate_rows<Traits>(p, work)), writer_(p, work, rows_) {
    load_queries<Traits>(a_, p, work, rows_);
  }

  /// As ScoredRows::take.
  __device__ __forceinline__ void take(typename Traits::Shared& shared,
                                       RingPosition<Traits::kStages> at, int, int, bool releases) {
    const std::uint32_t bad_parts = of_stage(shared.bad_boxes[at.stage], releases);
    const int4 parts = of_stage(shared.parts[at.stage], releases);
    const int4 slots = of_stage(shared.slots[at.stage], releases);
    float d[64];
    multiply<Traits>(d, a_, shared.keys[at.stage]);
    if (releases) shared.ring.release(at);
    // The last one lies furthest on.
    if ((parts.w + 1) * kPartKeys > rows_.visible_from || bad_parts != 0) {
      const int of[kTileParts] = {parts.x, parts.y, parts.z, parts.w};
      mask_fragment(d, threadIdx.x % 128, [&](int half, int column) {
        const int part = column / kPartKeys;
        const bool unseen = of[part] * kPartKeys + column % kPartKeys >= rows_.visible[half];
        return unseen || (bad_parts >> part & 1) != 0;
      });
    }
    float maxima[kTileParts];
    block_maxima(d, maxima);
    writer_.put(slots.x, maxima[0]);
    writer_.put(slots.y, maxima[1]);
    writer_.put(slots.z, maxima[2]);
    writer_.put(slots.w, maxima[3]);
  }

  __device__ __forceinline__ void finish(int) { writer_.finish(); }

 private:
  const ConsumerRows rows_;
  ListedWriter<Traits> writer_;
  std::uint32_t a_[4 * Traits::kSteps];
};

}  // namespace msa::cuda::sm90::select
