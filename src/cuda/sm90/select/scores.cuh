// SPDX-License-Identifier: MIT
// Scores of 64 rows of (token, index head) on the tensor cores against tiles of 128 keys: the
// maximum over each block's visible keys.
#pragma once

#include "cuda/common/rows.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/select/traits.cuh"
#include "cuda/sm90/tile/descriptor.cuh"
#include "cuda/sm90/tile/fragment.cuh"
#include "cuda/sm90/tile/key_box.cuh"

namespace msa::cuda::sm90::select {

/// Two rows of a consumer thread: r and r + 8 of the CTA's rows.
struct ConsumerRows {
  int row[2];
  bool valid[2];
  int visible[2];    // keys
  int visible_from;  // keys that every row of the warpgroup sees
};

template <class Traits>
__device__ __forceinline__ ConsumerRows locate_rows(const Params& p, const Work& work) {
  ConsumerRows rows;
  const int first = threadIdx.x / 128 * 64;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    rows.row[i] = first + fragment_row(threadIdx.x % 128) + 8 * i;
    rows.valid[i] = rows.row[i] < work.valid_rows;
    rows.visible[i] =
        rows.valid[i] ? visible_keys(work.rows, rows.row[i] / p.heads, p.batch.causal) : 0;
  }
  rows.visible_from = visible_keys(work.rows, first / p.heads, p.batch.causal);
  return rows;
}

/// A fragments of this thread's rows for the whole contraction. Rows that are not there repeat the
/// last one: their scores go nowhere.
template <class Traits>
__device__ __forceinline__ void load_queries(std::uint32_t (&a)[4 * Traits::kSteps],
                                             const Params& p, const Work& work,
                                             const ConsumerRows& rows) {
  const std::uint16_t* q[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = min(rows.row[i], work.valid_rows - 1);
    const std::int64_t token = work.rows.q_begin + r / p.heads;
    const std::int64_t head = work.group * p.heads + r % p.heads;
    q[i] =
        common::row_of<std::uint16_t>(p.queries, token, head) + fragment_column(threadIdx.x % 128);
  }
  if (p.queries_paired) {
#pragma unroll
    for (int s = 0; s < 4 * Traits::kSteps; ++s) {
      a[s] = __ldg(reinterpret_cast<const std::uint32_t*>(q[s % 2] + 8 * (s / 2)));
    }
  } else {
#pragma unroll
    for (int s = 0; s < 4 * Traits::kSteps; ++s) {
      const std::uint16_t* pair = q[s % 2] + 8 * (s / 2);
      a[s] = __ldg(pair) | static_cast<std::uint32_t>(__ldg(pair + 1)) << 16;
    }
  }
}

/// Puts -inf where a row does not see a key, or where the key's page is not there.
template <class Traits>
__device__ __forceinline__ void mask_scores(float (&d)[64], const ConsumerRows& rows, int tile,
                                            std::uint32_t bad_boxes, int shift) {
  mask_fragment(d, threadIdx.x % 128, [&](int half, int column) {
    const bool unseen = tile * Traits::kKeys + column >= rows.visible[half];
    return unseen || (bad_boxes >> (column >> shift) & 1) != 0;
  });
}

/// Maximum over `kGroups` column groups of 8, from `begin` on, as integers: right where it comes
/// out as a number from 0 to +inf.
template <int kGroups>
__device__ __forceinline__ int max_as_integers(const float (&d)[64], int begin, int row) {
  const auto bits = [&](int g, int i) { return __float_as_int(d[4 * (begin + g) + 2 * row + i]); };
  int even = max(bits(0, 0), bits(0, 1));
  int odd = max(bits(1, 0), bits(1, 1));
#pragma unroll
  for (int g = 2; g < kGroups; g += 2) {
    even = ptx::vimax3(even, bits(g, 0), bits(g, 1));
    odd = ptx::vimax3(odd, bits(g + 1, 0), bits(g + 1, 1));
  }
  return max(even, odd);
}

/// The same as floats: right for negative maxima too, NaN counts as -inf.
template <int kGroups>
__device__ __forceinline__ int max_as_floats(const float (&d)[64], int begin, int row) {
  float m = kMinusInf;
#pragma unroll
  for (int g = begin; g < begin + kGroups; ++g)
    m = fmaxf(m, fmaxf(d[4 * g + 2 * row], d[4 * g + 2 * row + 1]));
  return __float_as_int(m);
}

/// Joins the quad's two rows: even lanes end with row 0's maximum, odd lanes with row 1's.
template <class Max>
__device__ __forceinline__ auto join_quad(int row0, int row1, Max max) {
  const bool odd = (threadIdx.x & 1) != 0;
  int m = odd ? row1 : row0;
  m = max(m, __shfl_xor_sync(kAllLanes, odd ? row0 : row1, 1));
  return max(m, __shfl_xor_sync(kAllLanes, m, 2));
}

/// Maxima of a key tile's `kBlocks` blocks: of row 0 in even lanes, of row 1 in odd lanes.
template <int kBlocks>
__device__ __forceinline__ void block_maxima(const float (&d)[64], float (&maxima)[kBlocks]) {
  constexpr int kGroups = 16 / kBlocks;
  std::uint32_t largest = 0;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    const int m = join_quad(max_as_integers<kGroups>(d, b * kGroups, 0),
                            max_as_integers<kGroups>(d, b * kGroups, 1),
                            [](int x, int y) { return max(x, y); });
    maxima[b] = __int_as_float(m);
    largest = max(largest, static_cast<std::uint32_t>(m));
  }
  constexpr std::uint32_t kInf = 0x7f800000;
  if (!__any_sync(kAllLanes, largest > kInf)) return;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    const int m = join_quad(
        max_as_floats<kGroups>(d, b * kGroups, 0), max_as_floats<kGroups>(d, b * kGroups, 1),
        [](int x, int y) { return __float_as_int(fmaxf(__int_as_float(x), __int_as_float(y))); });
    maxima[b] = __int_as_float(m);
  }
}

/// Block scores of this thread's row on their way to memory.
template <class Traits>
class ScoreWriter {
 public:
  __device__ __forceinline__ ScoreWriter(const Params& p, const Work& work,
                                         const ConsumerRows& rows)
      : columns_(p.columns), stride_slot_(p.scores.stride_slot) {
    const int i = threadIdx.x & 1;
    const int r = i != 0 ? rows.row[1] : rows.row[0];
    const bool valid = i != 0 ? rows.valid[1] : rows.valid[0];
    writes_ = valid && (threadIdx.x & 2) == 0;
    if constexpr (Traits::kConfig.scratch) {
      row_ = p.scores.data +
             ((static_cast<std::int64_t>(work.slot) * p.groups + work.group) * Traits::kRows + r) *
                 p.scores.stride_h;
    } else {
      row_ = common::slots_of(p.scores, work.rows.q_begin + r / p.heads,
                              work.group * p.heads + r % p.heads);
    }
  }

  /// Block maxima of key tile `tile`, where it is `there`; whole float4s go out as they fill.
  __device__ __forceinline__ void put(const float (&maxima)[Traits::kBlocksPerTile], int tile,
                                      bool there = true) {
    if constexpr (!Traits::kConfig.scratch) {
#pragma unroll
      for (int b = 0; b < Traits::kBlocksPerTile; ++b) {
        const std::int64_t column = static_cast<std::int64_t>(tile) * Traits::kBlocksPerTile + b;
        if (writes_ && there && column < columns_) row_[column * stride_slot_] = maxima[b];
      }
    } else {
      const int turn = tile % kTilesPerVector;
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        if (s / Traits::kBlocksPerTile == turn) pending_[s] = maxima[s % Traits::kBlocksPerTile];
      }
      if (turn == kTilesPerVector - 1) flush(tile, there);
    }
  }

  /// The last, perhaps unfilled float4; rows have room for it.
  __device__ __forceinline__ void finish(int end_tile) {
    if constexpr (Traits::kConfig.scratch) {
      if (end_tile % kTilesPerVector != 0) flush(end_tile, true);
    }
  }

 private:
  static constexpr int kTilesPerVector = 4 / Traits::kBlocksPerTile;

  __device__ __forceinline__ void flush(int tile, bool there) {
    float4* at = reinterpret_cast<float4*>(row_) + tile / kTilesPerVector;
    if (writes_ && there) *at = make_float4(pending_[0], pending_[1], pending_[2], pending_[3]);
  }

  float* row_;
  std::int64_t columns_;
  std::int64_t stride_slot_;
  bool writes_;
  float pending_[4] = {};
};

/// What a stage holds beside its keys, for a whole warp: only the lane that will release the stage
/// `reads` it, so that no read can come behind the release.
__device__ __forceinline__ std::uint32_t of_stage(const std::uint32_t& word, bool reads) {
  return __shfl_sync(kAllLanes, reads ? word : 0u, 0);
}
__device__ __forceinline__ int of_stage(const int& word, bool reads) {
  return __shfl_sync(kAllLanes, reads ? word : 0, 0);
}
__device__ __forceinline__ int4 of_stage(const int4& words, bool reads) {
  const int4 mine = reads ? words : int4{};
  return make_int4(__shfl_sync(kAllLanes, mine.x, 0), __shfl_sync(kAllLanes, mine.y, 0),
                   __shfl_sync(kAllLanes, mine.z, 0), __shfl_sync(kAllLanes, mine.w, 0));
}

/// Scores of 64 rows against one key tile that has arrived.
template <class Traits>
__device__ __forceinline__ void multiply(float (&d)[64], const std::uint32_t* a,
                                         const std::uint8_t* keys) {
  ptx::wgmma_fence();
#pragma unroll
  for (int s = 0; s < Traits::kSteps; ++s) {
    const std::uint64_t b = descriptor_k_major(keys + s / 4 * (Traits::kKeys * kPanelRowBytes)) +
                            s % 4 * kDescriptorStepK;
    ptx::wgmma_m64n128k16_rs<typename Traits::Item, ptx::Major::K>(d, a + 4 * s, b, s != 0);
  }
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::keep_accumulator(d);
}

/// What a warpgroup's rows make of key tiles: maxima of blocks.
template <class Traits>
class ScoredRows {
 public:
  __device__ __forceinline__ ScoredRows(const Params& p, const Work& work)
      : rows_(locate_rows<Traits>(p, work)), writer_(p, work, rows_) {
    load_queries<Traits>(a_, p, work, rows_);
  }

  /// Of a stage that has arrived; one lane of each warp `releases` it.
  __device__ __forceinline__ void take(typename Traits::Shared& shared,
                                       RingPosition<Traits::kStages> at, int tile, int shift,
                                       bool releases) {
    const std::uint32_t bad_boxes = of_stage(shared.bad_boxes[at.stage], releases);
    float d[64];
    multiply<Traits>(d, a_, shared.keys[at.stage]);
    if (releases) shared.ring.release(at);
    if ((tile + 1) * Traits::kKeys > rows_.visible_from || bad_boxes != 0) {
      mask_scores<Traits>(d, rows_, tile, bad_boxes, shift);
    }
    float maxima[Traits::kBlocksPerTile];
    block_maxima(d, maxima);
    writer_.put(maxima, tile);
  }

  __device__ __forceinline__ void finish(int end) { writer_.finish(end); }

 private:
  const ConsumerRows rows_;
  ScoreWriter<Traits> writer_;
  std::uint32_t a_[4 * Traits::kSteps];
};

}  // namespace msa::cuda::sm90::select
