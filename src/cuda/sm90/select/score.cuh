// SPDX-License-Identifier: MIT
// Block scores on the tensor cores: rows of (token, index head) against tiles of 128 keys, the
// maximum over each block's visible keys. Persistent CTAs; an item is one tile of query rows and
// one span of key tiles. See docs/kernels/select.md.
#pragma once

#include "cuda/geometry.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/select/launch.h"
#include "cuda/sm90/select/score_traits.h"
#include "cuda/sm90/tile/align.cuh"
#include "cuda/sm90/tile/fragment.cuh"
#include "cuda/sm90/tile/key_box.cuh"

namespace msa::cuda::sm90::select {

inline constexpr float kMinusInf = -__builtin_inff();
inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kFirstWarpgroupBarrier = 1;  // named barriers 1 to 3: a warpgroup's own

/// Item `item` of the launch: heavy tiles, which are later ones, first.
__device__ __forceinline__ ScoreWork locate_work(const ScoreParams& p, unsigned item) {
  ScoreWork work;
  const auto tiles = static_cast<unsigned>(p.num_tiles);
  const auto spans = static_cast<unsigned>(p.spans);
  work.group = static_cast<int>(item / (tiles * spans));
  item %= tiles * spans;
  work.span = static_cast<int>(p.tile_major ? item % spans : item / tiles);
  work.slot = static_cast<int>(tiles - 1 - (p.tile_major ? item / spans : item % tiles));
  const QueryTile& tile = p.tiles[work.slot];
  work.rows = tile.rows;
  work.request = tile.request;
  work.valid_rows = work.rows.seqlen_q * p.heads;
  const int last_row = work.rows.seqlen_q - 1;
  const int keys = last_row >= 0 ? visible_keys(work.rows, last_row, p.batch.causal) : 0;
  work.visible_end = (keys + kTileKeys - 1) / kTileKeys;
  const int span = static_cast<int>(p.span);
  work.first = min(work.span * span, work.visible_end);
  work.end = min(work.first + span, work.visible_end);
  return work;
}

/// The next item, for the warps of a role; each warp calls done() once it has read it. Numbers that
/// loops around wgmma depend on come from lane 0: ptxas must see that all lanes agree (C7518).
template <class Traits>
class WorkQueue {
 public:
  __device__ __forceinline__ explicit WorkQueue(typename Traits::Shared& shared)
      : shared_(shared) {}

  /// Rows of the item, or a negative number where there is none left.
  __device__ __forceinline__ int wait_next() {
    shared_.work_ring.wait_full(at_);
    return __shfl_sync(kAllLanes, work().valid_rows, 0);
  }
  __device__ __forceinline__ const ScoreWork& work() const { return shared_.work[at_.stage]; }
  __device__ __forceinline__ int first() const { return __shfl_sync(kAllLanes, work().first, 0); }
  __device__ __forceinline__ int end() const { return __shfl_sync(kAllLanes, work().end, 0); }
  __device__ __forceinline__ void done() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) shared_.work_ring.release(at_);
    at_.advance();
  }

 private:
  typename Traits::Shared& shared_;
  RingPosition<Traits::kWorkSlots> at_{};
};

/// Two filler warps: -inf into the columns of an item's share that no row of the tile sees.
template <class Traits>
__device__ __forceinline__ void fill_invisible(const ScoreParams& p,
                                               typename Traits::Shared& shared) {
  WorkQueue<Traits> queue(shared);
  while (queue.wait_next() >= 0) {
    const ScoreWork work = queue.work();
    queue.done();
    const std::int64_t share = p.span * Traits::kBlocksPerTile;
    const std::int64_t begin = max(
        work.span * share, static_cast<std::int64_t>(work.visible_end) * Traits::kBlocksPerTile);
    const std::int64_t end =
        work.span + 1 == p.spans ? p.columns : min(p.columns, (work.span + 1) * share);
    for (int r = threadIdx.x / 32 % 2; r < work.valid_rows; r += 2) {
      float* row = p.scores + (work.rows.q_begin + r / p.heads) * p.stride_token +
                   (work.group * p.heads + r % p.heads) * p.stride_head;
      for (std::int64_t c = begin + threadIdx.x % 32; c < end; c += 32) {
        row[c * p.stride_block] = kMinusInf;
      }
    }
  }
}

/// Key tiles [work.first, work.end) into the ring, box by box through the page table.
template <class Traits>
__device__ __forceinline__ void load_keys(const ScoreParams& p, const CUtensorMap* key_map,
                                          const ScoreWork& work, RingPosition<Traits::kStages>& at,
                                          typename Traits::Shared& shared) {
  const int lane = threadIdx.x % 32;
  const int lanes = key_box_lanes<Traits::kKeys, Traits::kPanels>(p.batch.page_size);
  for (int tile = work.first; tile < work.end; ++tile, at.advance()) {
    KeyBox box;
    if (lane < lanes) {
      box = locate_key_box<Traits::kKeys>(p.batch, work.rows, work.request, tile,
                                          lane / Traits::kPanels);
    }
    std::uint32_t bad = 0;
    if (__any_sync(kAllLanes, box.bad)) {
      bad = __reduce_or_sync(kAllLanes, box.bad ? 1u << (lane / Traits::kPanels) : 0u);
      if (lane == 0) report(p.batch.status, work.request, -1, FaultKind::PageId);
    }
    shared.ring.wait_empty(at);
    if (lane == 0) {
      shared.bad_boxes[at.stage] = bad;
      shared.ring.expect(at, Traits::kTileBytes);
    }
    __syncwarp();
    if (lane < lanes) {
      load_key_box<Traits::kKeys, Traits::kPanels>(shared.keys[at.stage], key_map,
                                                   &shared.ring.full[at.stage], work.group, box,
                                                   p.batch.page_size, lane);
    }
  }
}

/// The producer warp: takes items in turn and loads their keys. It takes the next one when it has
/// asked for the last keys of this one: early enough to hide the way there, late enough not to hold
/// work that an idle CTA could do. Items without keys are left out where nobody waits for them.
template <class Traits>
__device__ __forceinline__ void produce(const ScoreParams& p, const CUtensorMap* key_map,
                                        typename Traits::Shared& shared) {
  const int lane = threadIdx.x % 32;
  const unsigned items = static_cast<unsigned>(p.num_tiles) * p.spans * p.groups;
  RingPosition<Traits::kWorkSlots> slot;
  RingPosition<Traits::kStages> at;
  unsigned item = blockIdx.x;
  while (true) {
    ScoreWork work;
    work.valid_rows = -1;
    work.first = work.end = 0;
    if (item < items) work = locate_work(p, item);
    if (item >= items || !Traits::config.scratch || work.first < work.end) {
      shared.work_ring.wait_empty(slot);
      if (lane == 0) {
        shared.work[slot.stage] = work;
        ptx::mbarrier_arrive(&shared.work_ring.full[slot.stage]);
      }
      slot.advance();
      load_keys<Traits>(p, key_map, work, at, shared);
    }
    if (item >= items) return;
    if (lane == 0) item = gridDim.x + atomicAdd(p.next_item, 1u);
    item = __shfl_sync(kAllLanes, item, 0);
  }
}

/// Two rows of a consumer thread: r and r + 8 of the CTA's rows.
struct ConsumerRows {
  int row[2];
  bool valid[2];
  int visible[2];    // keys
  int visible_from;  // keys that every row of the warpgroup sees
};

template <class Traits>
__device__ __forceinline__ ConsumerRows locate_rows(const ScoreParams& p, const ScoreWork& work) {
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
                                             const ScoreParams& p, const ScoreWork& work,
                                             const ConsumerRows& rows) {
  const std::uint16_t* q[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = min(rows.row[i], work.valid_rows - 1);
    const std::int64_t token = work.rows.q_begin + r / p.heads;
    const std::int64_t head = work.group * p.heads + r % p.heads;
    q[i] = static_cast<const std::uint16_t*>(p.queries) + token * p.query_stride_token +
           head * p.query_stride_head + fragment_column(threadIdx.x % 128);
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
                                            std::uint32_t bad_boxes, int tokens_per_box) {
  const int c = fragment_column(threadIdx.x % 128);
#pragma unroll
  for (int g = 0; g < 16; ++g) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = 8 * g + c + i % 2;
      const bool hidden = tile * Traits::kKeys + column >= rows.visible[i / 2];
      if (hidden || (bad_boxes >> (column / tokens_per_box) & 1) != 0) d[4 * g + i] = kMinusInf;
    }
  }
}

/// Maximum over column groups [begin, end) of 8 as integers: right where it comes out as a number
/// from 0 to +inf.
template <int kBegin, int kEnd>
__device__ __forceinline__ int max_as_integers(const float (&d)[64], int row) {
  const auto bits = [&](int g, int i) { return __float_as_int(d[4 * g + 2 * row + i]); };
  int even = max(bits(kBegin, 0), bits(kBegin, 1));
  int odd = max(bits(kBegin + 1, 0), bits(kBegin + 1, 1));
#pragma unroll
  for (int g = kBegin + 2; g < kEnd; g += 2) {
    even = ptx::vimax3(even, bits(g, 0), bits(g, 1));
    odd = ptx::vimax3(odd, bits(g + 1, 0), bits(g + 1, 1));
  }
  return max(even, odd);
}

/// The same as floats: right for negative maxima too, NaN counts as -inf.
template <int kBegin, int kEnd>
__device__ __forceinline__ int max_as_floats(const float (&d)[64], int row) {
  float m = kMinusInf;
#pragma unroll
  for (int g = kBegin; g < kEnd; ++g)
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

/// Block maximum of column groups [kBegin, kEnd): of row 0 in even lanes, of row 1 in odd lanes.
template <int kBegin, int kEnd>
__device__ __forceinline__ float block_maximum(const float (&d)[64]) {
  const int m = join_quad(max_as_integers<kBegin, kEnd>(d, 0), max_as_integers<kBegin, kEnd>(d, 1),
                          [](int a, int b) { return max(a, b); });
  constexpr std::uint32_t kInf = 0x7f800000;
  if (!__any_sync(kAllLanes, static_cast<std::uint32_t>(m) > kInf)) return __int_as_float(m);
  const int slow = join_quad(
      max_as_floats<kBegin, kEnd>(d, 0), max_as_floats<kBegin, kEnd>(d, 1),
      [](int a, int b) { return __float_as_int(fmaxf(__int_as_float(a), __int_as_float(b))); });
  return __int_as_float(slow);
}

/// Block scores of this thread's row on their way to memory.
template <class Traits>
class ScoreWriter {
 public:
  __device__ __forceinline__ ScoreWriter(const ScoreParams& p, const ScoreWork& work,
                                         const ConsumerRows& rows)
      : columns_(p.columns), stride_block_(p.stride_block) {
    const int i = threadIdx.x & 1;
    const int r = i != 0 ? rows.row[1] : rows.row[0];
    const bool valid = i != 0 ? rows.valid[1] : rows.valid[0];
    writes_ = valid && (threadIdx.x & 2) == 0;
    if constexpr (Traits::config.scratch) {
      row_ = p.scores +
             ((static_cast<std::int64_t>(work.slot) * p.groups + work.group) * Traits::kRows + r) *
                 p.stride_head;
    } else {
      row_ = p.scores + (work.rows.q_begin + r / p.heads) * p.stride_token +
             (work.group * p.heads + r % p.heads) * p.stride_head;
    }
  }

  /// Block maxima of key tile `tile`; whole float4s go out as they fill.
  __device__ __forceinline__ void put(const float (&maxima)[Traits::kBlocksPerTile], int tile) {
    if constexpr (!Traits::config.scratch) {
#pragma unroll
      for (int b = 0; b < Traits::kBlocksPerTile; ++b) {
        const std::int64_t column = static_cast<std::int64_t>(tile) * Traits::kBlocksPerTile + b;
        if (writes_ && column < columns_) row_[column * stride_block_] = maxima[b];
      }
    } else {
      const int turn = tile % kTilesPerVector;
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        if (s / Traits::kBlocksPerTile == turn) pending_[s] = maxima[s % Traits::kBlocksPerTile];
      }
      if (turn == kTilesPerVector - 1) flush(tile);
    }
  }

  /// The last, perhaps unfilled float4; rows have room for it.
  __device__ __forceinline__ void finish(int end_tile) {
    if constexpr (Traits::config.scratch) {
      if (end_tile % kTilesPerVector != 0) flush(end_tile);
    }
  }

 private:
  static constexpr int kTilesPerVector = 4 / Traits::kBlocksPerTile;

  __device__ __forceinline__ void flush(int tile) {
    float4* at = reinterpret_cast<float4*>(row_) + tile / kTilesPerVector;
    if (writes_) *at = make_float4(pending_[0], pending_[1], pending_[2], pending_[3]);
  }

  float* row_;
  std::int64_t columns_;
  std::int64_t stride_block_;
  bool writes_;
  float pending_[4] = {};
};

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

/// A consumer warpgroup: 64 rows of each item against every key tile of its span. Without rows of
/// its own it only keeps the ring turning.
template <class Traits>
__device__ __forceinline__ void consume(const ScoreParams& p, int warpgroup,
                                        typename Traits::Shared& shared) {
  const int tokens_per_box = box_tokens(Traits::kKeys, p.batch.page_size);
  const bool releases = threadIdx.x % 128 == 0;
  WorkQueue<Traits> queue(shared);
  RingPosition<Traits::kStages> at;
  int valid_rows;
  while ((valid_rows = queue.wait_next()) >= 0) {
    const int first = queue.first();
    const int end = queue.end();
    if (warpgroup * 64 >= valid_rows) {
      queue.done();
      for (int tile = first; tile < end; ++tile, at.advance()) {
        shared.ring.wait_full(at);
        // Elsewhere wgmma keeps the four warps together; one that fell a lap behind would wait for
        // ever.
        ptx::bar_sync(kFirstWarpgroupBarrier + warpgroup, 128);
        if (releases) shared.ring.release(at);
      }
      continue;
    }
    const ConsumerRows rows = locate_rows<Traits>(p, queue.work());
    std::uint32_t a[4 * Traits::kSteps];
    load_queries<Traits>(a, p, queue.work(), rows);
    ScoreWriter<Traits> writer(p, queue.work(), rows);
    queue.done();
    for (int tile = first; tile < end; ++tile, at.advance()) {
      shared.ring.wait_full(at);
      const std::uint32_t bad_boxes = shared.bad_boxes[at.stage];
      float d[64];
      multiply<Traits>(d, a, shared.keys[at.stage]);
      if (releases) shared.ring.release(at);
      if ((tile + 1) * Traits::kKeys > rows.visible_from || bad_boxes != 0) {
        mask_scores<Traits>(d, rows, tile, bad_boxes, tokens_per_box);
      }
      float maxima[Traits::kBlocksPerTile];
      if constexpr (Traits::kBlocksPerTile == 1) {
        maxima[0] = block_maximum<0, 16>(d);
      } else {
        maxima[0] = block_maximum<0, 8>(d);
        maxima[1] = block_maximum<8, 16>(d);
      }
      writer.put(maxima, tile);
    }
    writer.finish(end);
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    score_blocks(const __grid_constant__ ScoreParams p,
                 const __grid_constant__ CUtensorMap key_map) {
  extern __shared__ std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(align_shared<1024>(raw));
  if (threadIdx.x == 0) {
    shared.ring.init(Traits::kWarpgroups);
    shared.work_ring.init(Traits::kReaders);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x / 32), 0);
  const int warpgroup = warp / 4;
  if (warpgroup == Traits::kWarpgroups) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    if (warp % 4 == 0) {
      produce<Traits>(p, &key_map, shared);
    } else if (!Traits::config.scratch && warp % 4 >= 2) {
      fill_invisible<Traits>(p, shared);
    }
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    consume<Traits>(p, warpgroup, shared);
  }
}

}  // namespace msa::cuda::sm90::select
