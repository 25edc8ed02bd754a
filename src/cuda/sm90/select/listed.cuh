// SPDX-License-Identifier: MIT
// Scores of 64 rows against the parts that a filter has left of their tile's keys: four parts are
// multiplied as one key tile, by the very instructions of scores.cuh, so that a key's score has the
// same bits. What leaves is a row of the maxima of the listed blocks, in the order of the list.
#pragma once

#include "cuda/sm90/select/scores.cuh"

namespace msa::cuda::sm90::select {

/// Logarithm of a block's parts.
__device__ __forceinline__ int part_shift(const BatchParams& batch) {
  return __ffs(batch.block_size) - __ffs(kPartKeys);
}

/// Maxima of a row's listed blocks on their way to memory. Parts of a block follow each other.
template <class Traits>
class ListedWriter {
 public:
  __device__ __forceinline__ ListedWriter(const Params& p, const Work& work,
                                          const ConsumerRows& rows)
      : shift_(part_shift(p.batch)) {
    const int i = threadIdx.x & 1;
    writes_ = (i != 0 ? rows.valid[1] : rows.valid[0]) && (threadIdx.x & 2) == 0;
    row_ = p.scores.data +
           ((static_cast<std::int64_t>(work.slot) * p.groups + work.group) * Traits::kRows +
            (i != 0 ? rows.row[1] : rows.row[0])) *
               p.scores.stride_h;
  }

  __device__ __forceinline__ void put(int part, float maximum) {
    if (part == kNoPart) return;
    const int block = part >> shift_;
    if (block == block_) {
      best_ = fmaxf(best_, maximum);
      return;
    }
    keep();
    block_ = block;
    best_ = maximum;
  }

  __device__ __forceinline__ void finish() {
    keep();
    if (slot_ % 4 != 0) flush();
  }

 private:
  /// The block that is done with, if there is one.
  __device__ __forceinline__ void keep() {
    if (block_ < 0) return;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      if (s == slot_ % 4) pending_[s] = best_;
    }
    ++slot_;
    if (slot_ % 4 == 0) flush();
  }

  __device__ __forceinline__ void flush() {
    float4* at = reinterpret_cast<float4*>(row_) + (slot_ - 1) / 4;
    if (writes_) *at = make_float4(pending_[0], pending_[1], pending_[2], pending_[3]);
  }

  const int shift_;  // logarithm of a block's parts
  float* row_;
  bool writes_;
  int block_ = -1;
  int slot_ = 0;  // of the block behind it
  float best_ = 0.0f;
  float pending_[4] = {};
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
    const std::uint32_t bad_parts = shared.bad_boxes[at.stage];
    const int4 parts = shared.parts[at.stage];
    float d[64];
    multiply<Traits>(d, a_, shared.keys[at.stage]);
    if (releases) shared.ring.release(at);
    const int of[kTileParts] = {parts.x, parts.y, parts.z, parts.w};
    // The last one lies furthest on.
    if ((parts.w + 1) * kPartKeys > rows_.visible_from || bad_parts != 0) {
      mask_fragment(d, threadIdx.x % 128, [&](int half, int column) {
        const int part = column / kPartKeys;
        const bool unseen = of[part] * kPartKeys + column % kPartKeys >= rows_.visible[half];
        return unseen || (bad_parts >> part & 1) != 0;
      });
    }
    writer_.put(of[0], block_maximum<0, 4>(d));
    writer_.put(of[1], block_maximum<4, 8>(d));
    writer_.put(of[2], block_maximum<8, 12>(d));
    writer_.put(of[3], block_maximum<12, 16>(d));
  }

  __device__ __forceinline__ void finish(int) { writer_.finish(); }

 private:
  const ConsumerRows rows_;
  ListedWriter<Traits> writer_;
  std::uint32_t a_[4 * Traits::kSteps];
};

}  // namespace msa::cuda::sm90::select
