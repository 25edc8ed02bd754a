// SPDX-License-Identifier: MIT
// Decode attention: one CTA takes a share of the blocks of one (query row, KV head, 16 query
// heads). Warp 4 streams blocks of K and V through a ring with the copy engine; warps 0 to 3 take a
// quarter of the keys of each block, with a softmax state of their own (mma.sync, heads on M), and
// join at the end, up to 8 splits as a cluster. With more the last CTA to arrive merges fp32
// partials in split order, so the bits never depend on who came last.
//
// Instructions that run once are fetched from memory, which takes longer than they do. A CTA that
// has to wait for scores anyway rehearses: it selects from a few items of its query and joins
// shares of zeros, and writes nothing.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/geometry.cuh"
#include "cuda/sm90/decode/launch.h"
#include "cuda/sm90/decode/request.cuh"
#include "cuda/sm90/decode/select.cuh"
#include "cuda/sm90/ptx/cluster.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/ptx/matrix.cuh"
#include "cuda/sm90/tile/align.cuh"
#include "cuda/sm90/tile/fragment.cuh"
#include "cuda/sm90/tile/key_box.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/tile/swizzle.cuh"

namespace msa::cuda::sm90::decode {

template <class T, int kBlockTokens, int kDimension>
struct AttendTraits {
  using Item = T;
  static constexpr int kBlock = kBlockTokens;
  static constexpr int kDim = kDimension;
  static constexpr int kPanels = kDim / kPanelItems;
  static constexpr int kConsumers = 4;               // warps
  static constexpr int kKeys = kBlock / kConsumers;  // of a block, for one warp
  static constexpr int kKeyTiles = kKeys / 8;        // n8 tiles of scores
  static constexpr int kSteps = kKeys / 16;          // k16 steps of P * V
  static constexpr int kDimTiles = kDim / 8;         // n8 tiles of the output
  static constexpr int kThreads = (kConsumers + 1) * 32;
  static constexpr int kTileBytes = kBlock * kDim * 2;  // of K or V
  // Two CTAs an SM, 96 KB of tiles each: one selects while the other's loads are in flight.
  static constexpr int kCtasPerSm = 2;
  static constexpr int kRingBytes = 96 * 1024;
  static constexpr int kStages = kRingBytes / kTileBytes;
  static constexpr int kMergePitch = kDim + 8;  // floats; keeps rows off each other's banks
  static_assert(kKeys % 16 == 0, "a warp takes whole k16 steps");
  static_assert(kRingBytes >= kConsumers * 16 * kMergePitch * 4,
                "the warps' outputs overlay the ring");
  static_assert(kRingBytes >= kSegmentBlocks * 4 + kMostCandidates * 8,
                "so does the scratch of a selection");
};

enum NamedBarrier : int { kBarrierConsumers = 1 };  // 0 is __syncthreads

/// What this CTA computes.
struct Item {
  std::int64_t row;  // token + first row of the request
  int request;
  int token;
  int head;  // KV head
  int tile;  // of 16 query heads in the group
  int split;
  int visible;      // keys that the row sees
  int num_entries;  // blocks of the row, all splits
  int begin, end;   // entries of this split
};

template <class Traits>
struct AttendShared {
  Ring<Traits::kStages> ring;            // tiles of K and V in turn
  unsigned bad_boxes[Traits::kStages];   // boxes of a tile of K whose page id was out of range
  float2 state[Traits::kConsumers][16];  // maximum and sum of each warp's share
  Item item;                             // but for its entries
  int last_arrival;
  // Parts of the rows that this CTA of a cluster finishes, [split][row].
  ptx::Mbarrier exchange_full;
  float4 exchange_state[16];  // maximum and sum
  alignas(16) float exchange[16][Traits::kDim];
  SelectStorage select;
};

/// Dynamic shared memory: the ring (1024-byte aligned), AttendShared.
template <class Traits>
constexpr int attend_shared_bytes() {
  return 1024 + Traits::kStages * Traits::kTileBytes +
         static_cast<int>(sizeof(AttendShared<Traits>));
}

/// The item of this CTA, as far as the grid tells.
__device__ __forceinline__ Item make_item(const AttendParams& p) {
  const int token_slots = p.select.token_slots;
  Item item{};
  item.split = blockIdx.x;
  item.head = blockIdx.y / p.tiles;
  item.tile = blockIdx.y % p.tiles;
  item.request = blockIdx.z / token_slots;
  item.token = blockIdx.z % token_slots;
  return item;
}

/// Local block of entry i of the row's list.
__device__ __forceinline__ int entry_block(const AttendParams& p, const SelectStorage& s, int i) {
  return p.blocks == Blocks::All ? i : s.ids[i];
}

/// Reads a given list: what is visible of it, in the order given, lies in s.ids afterwards (local
/// ids). One warp.
__device__ __forceinline__ void read_list(const AttendParams& p, const RequestRecord& r,
                                          const Item& item, SelectStorage& s, int lane) {
  const SelectParams& list = p.select;
  const std::int64_t first = first_block(r, list.batch.block_size);
  const std::int64_t legal = legal_blocks(r, list.batch.block_size);
  const int visible = static_cast<int>(ceil_div(item.visible, list.batch.block_size));
  int kept = 0;
  bool ended = false;
  for (int base = 0; base < list.topk && !ended; base += 32) {
    const int slot = base + lane;
    const int id = slot < list.topk
                       ? __ldg(list.ids + item.row * list.stride_ids_t +
                               item.head * list.stride_ids_h + slot * list.stride_ids_slot)
                       : -1;
    const unsigned stops = __ballot_sync(0xffffffffu, id == -1);
    const unsigned before_end =
        stops == 0 ? 0xffffffffu : (1u << (__ffs(static_cast<int>(stops)) - 1)) - 1;
    const bool listed = (before_end >> lane) & 1;
    const bool bad = listed && (id < 0 || id >= legal);
    if (bad) report(list.batch.status, item.request, item.token, FaultKind::BlockId);
    const std::int64_t block = id - first;
    const bool used = listed && !bad && block >= 0 && block < visible;
    const unsigned mask = __ballot_sync(0xffffffffu, used);
    if (used) s.ids[kept + __popc(mask & ((1u << lane) - 1))] = static_cast<int>(block);
    kept += __popc(mask);
    ended = stops != 0;
  }
  if (lane == 0) s.num_ids = kept;
}

/// a / b, quickly where b is a power of two.
__device__ __forceinline__ int divide(int a, int b) {
  return (b & (b - 1)) == 0 ? a >> (__ffs(b) - 1) : a / b;
}

/// Finds the row's blocks; `row` is what a selection chooses from, with its scratch where the ring
/// will be. All threads of the CTA call it.
template <class Traits>
__device__ __forceinline__ void find_blocks(const AttendParams& p, const RequestRecord& r,
                                            Item& item, SelectRow row, AttendShared<Traits>& shared,
                                            std::uint8_t* stages, bool rehearsal) {
  if (p.blocks == Blocks::All) {
    item.num_entries = (item.visible + Traits::kBlock - 1) / Traits::kBlock;
  } else if (p.blocks == Blocks::Scored) {
    if (rehearsal) {
      row.orders = static_cast<const std::uint32_t*>(p.q) + item.row * p.stride_q_t / 2;
      row.visible = min(row.visible, Traits::kDim / 2);
    }
    select_topk(shared.select, stages, row, p.select.topk, p.select.lanes, threadIdx.x);
    if (threadIdx.x < kSelectThreads && item.split == 0 && item.tile == 0 && !rehearsal) {
      store_selection(p.select, shared.select, item.row, item.head, row.first,
                      shared.select.num_ids, threadIdx.x);
    }
    item.num_entries = shared.select.num_ids;
  } else {
    if (threadIdx.x < 32) read_list(p, r, item, shared.select, threadIdx.x);
    __syncthreads();
    item.num_entries = shared.select.num_ids;
  }
  const int share = divide(item.num_entries, p.splits);
  const int longer = item.num_entries - share * p.splits;  // splits that take one block more
  item.begin = share * item.split + min(item.split, longer);
  item.end = item.begin + share + (item.split < longer ? 1 : 0);
}

/// Boxes of a block whose page id is out of range, as bits.
template <class Traits>
__device__ __forceinline__ unsigned find_bad_boxes(const KeyBox& box, int lanes, int lane) {
  const bool counts = lane < lanes && lane % Traits::kPanels == 0 && box.bad;
  unsigned bad = 0;
  for (unsigned found = __ballot_sync(0xffffffffu, counts); found != 0; found &= found - 1) {
    bad |= 1u << ((__ffs(static_cast<int>(found)) - 1) / Traits::kPanels);
  }
  return bad;
}

/// Warp 4: streams the blocks of this split, K and V of each in turn.
template <class Traits>
__device__ __forceinline__ void produce(const AttendParams& p, const RequestRecord& r,
                                        const Item& item, AttendShared<Traits>& shared,
                                        std::uint8_t* stages, bool rehearsal, int lane) {
  const BatchParams& batch = p.select.batch;
  const int lanes = key_box_lanes<Traits::kBlock, Traits::kPanels>(batch.page_size);
  RingPosition<Traits::kStages> at;
  for (int i = item.begin; i < item.end; ++i) {
    const int block = entry_block(p, shared.select, i);
    KeyBox box;
    if (lane < lanes)
      box = locate_key_box<Traits::kBlock>(batch, r, item.request, block, lane / Traits::kPanels);
    const unsigned bad = find_bad_boxes<Traits>(box, lanes, lane);
    if (rehearsal) return;
    if (bad != 0 && lane == 0) report(batch.status, item.request, -1, FaultKind::PageId);
#pragma unroll
    for (int operand = 0; operand < 2; ++operand, at.advance()) {
      shared.ring.wait_empty(at);
      if (lane == 0) {
        shared.bad_boxes[at.stage] = bad;  // the arrival below publishes it
        shared.ring.expect(at, Traits::kTileBytes);
      }
      __syncwarp();
      if (lane >= lanes) continue;
      load_key_box<Traits::kBlock, Traits::kPanels>(
          stages + at.stage * Traits::kTileBytes, operand == 0 ? &p.k_map : &p.v_map,
          &shared.ring.full[at.stage], item.head, box, batch.page_size, lane);
    }
  }
}

/// Softmax state and output of the 16 heads over one warp's keys: lanes hold rows lane / 4 and lane
/// / 4 + 8.
template <class Traits>
struct WarpState {
  std::uint32_t q[Traits::kDim / 16][4];  // A fragments
  float out[Traits::kDimTiles][4];
  float best[2];
  float sum[2];
};

template <class Traits>
__device__ __forceinline__ void load_query(WarpState<Traits>& s, const AttendParams& p,
                                           const Item& item, int lane) {
  const auto* q = static_cast<const typename Traits::Item*>(p.q) + item.row * p.stride_q_t;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int member = item.tile * 16 + lane / 4 + half * 8;
    const auto* head = q + (item.head * p.group + member) * p.stride_q_h + (lane & 3) * 2;
#pragma unroll
    for (int step = 0; step < Traits::kDim / 16; ++step) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        s.q[step][part * 2 + half] =
            member < p.group ? *reinterpret_cast<const std::uint32_t*>(head + step * 16 + part * 8)
                             : 0u;
      }
    }
  }
}

template <class Traits>
__device__ __forceinline__ void reset_output(WarpState<Traits>& s) {
#pragma unroll
  for (int i = 0; i < Traits::kDimTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) s.out[i][j] = 0.f;
  }
  s.best[0] = s.best[1] = -INFINITY;
  s.sum[0] = s.sum[1] = 0.f;
}

/// S[heads][keys] of this warp's keys.
template <class Traits>
__device__ __forceinline__ void multiply_keys(float (&scores)[Traits::kKeyTiles][4],
                                              const WarpState<Traits>& s, const std::uint8_t* keys,
                                              int warp, int lane) {
#pragma unroll
  for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[tile][j] = 0.f;
    const int row = warp * Traits::kKeys + tile * 8 + (lane & 7);
#pragma unroll
    for (int pair = 0; pair < Traits::kDim / 32; ++pair) {  // two k16 steps a load
      const int chunk = pair * 4 + (lane >> 3);
      std::uint32_t b[4];
      ptx::ldmatrix_x4(b, keys + (chunk >> 3) * Traits::kBlock * kPanelRowBytes +
                              swizzled_chunk(row, chunk & 7));
      ptx::mma_m16n8k16<typename Traits::Item>(scores[tile], s.q[2 * pair], b[0], b[1]);
      ptx::mma_m16n8k16<typename Traits::Item>(scores[tile], s.q[2 * pair + 1], b[2], b[3]);
    }
  }
}

/// Sets the scores of keys that do not count to -inf.
template <class Traits>
__device__ __forceinline__ void mask_scores(float (&scores)[Traits::kKeyTiles][4], int visible,
                                            unsigned bad_boxes, int page_size, int warp, int lane) {
  const int shift = box_shift(Traits::kBlock, page_size);
#pragma unroll
  for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = warp * Traits::kKeys + tile * 8 + (lane & 3) * 2 + (j & 1);
      if (key >= visible || ((bad_boxes >> (key >> shift)) & 1) != 0) scores[tile][j] = -INFINITY;
    }
  }
}

/// Zeroes this warp's values that are not visible: 0 * NaN must not reach the output.
template <class Traits>
__device__ __forceinline__ void clear_values(std::uint8_t* values, int visible, int warp,
                                             int lane) {
  const int first = warp * Traits::kKeys;
  for (int key = max(first, visible); key < first + Traits::kKeys; ++key) {
    for (int chunk = lane; chunk < Traits::kDim / 8; chunk += 32) {
      std::uint8_t* at =
          values + (chunk >> 3) * Traits::kBlock * kPanelRowBytes + swizzled_chunk(key, chunk & 7);
      *reinterpret_cast<uint4*>(at) = uint4{0, 0, 0, 0};
    }
  }
  ptx::fence_proxy_async_shared();  // the copy engine writes here next
  __syncwarp();
}

/// Online softmax over this warp's keys: scores become P (A fragments), the state moves on.
template <class Traits>
__device__ __forceinline__ void softmax_step(std::uint32_t (&probabilities)[Traits::kSteps][4],
                                             WarpState<Traits>& s,
                                             const float (&scores)[Traits::kKeyTiles][4],
                                             float scale_log2) {
  float shift[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float best = s.best[half];
#pragma unroll
    for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
      best = fmaxf(best, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
    }
    best = quad::max(best);
    shift[half] = best == -INFINITY ? 0.f : best;  // nothing but -inf so far: keep exp2(-inf) = 0
    const float scale =
        s.best[half] == -INFINITY ? 0.f : ptx::ex2((s.best[half] - shift[half]) * scale_log2);
    s.best[half] = best;
    s.sum[half] *= scale;
#pragma unroll
    for (int i = 0; i < Traits::kDimTiles; ++i) {
      s.out[i][2 * half] *= scale;
      s.out[i][2 * half + 1] *= scale;
    }
  }
#pragma unroll
  for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
    float x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = ptx::ex2((scores[tile][j] - shift[j / 2]) * scale_log2);
      s.sum[j / 2] += x[j];
    }
    probabilities[tile / 2][(tile & 1) * 2] = ptx::cvt_pack<typename Traits::Item>(x[0], x[1]);
    probabilities[tile / 2][(tile & 1) * 2 + 1] = ptx::cvt_pack<typename Traits::Item>(x[2], x[3]);
  }
}

template <class Traits>
__device__ __forceinline__ void multiply_values(
    WarpState<Traits>& s, const std::uint32_t (&probabilities)[Traits::kSteps][4],
    const std::uint8_t* values, int warp, int lane) {
#pragma unroll
  for (int step = 0; step < Traits::kSteps; ++step) {
    const int row = warp * Traits::kKeys + step * 16 + (lane & 15);
#pragma unroll
    for (int pair = 0; pair < Traits::kDimTiles / 2; ++pair) {
      const int chunk = pair * 2 + (lane >> 4);
      std::uint32_t b[4];
      ptx::ldmatrix_x4_trans(b, values + (chunk >> 3) * Traits::kBlock * kPanelRowBytes +
                                    swizzled_chunk(row, chunk & 7));
      ptx::mma_m16n8k16<typename Traits::Item>(s.out[2 * pair], probabilities[step], b[0], b[1]);
      ptx::mma_m16n8k16<typename Traits::Item>(s.out[2 * pair + 1], probabilities[step], b[2],
                                               b[3]);
    }
  }
}

/// Warps 0 to 3: all blocks of this split.
template <class Traits>
__device__ __forceinline__ void consume(WarpState<Traits>& s, const AttendParams& p,
                                        const Item& item, AttendShared<Traits>& shared,
                                        std::uint8_t* stages, int warp, int lane) {
  RingPosition<Traits::kStages> at;
  const auto release = [&] {
    __syncwarp();
    if (lane == 0) shared.ring.release(at);
    at.advance();
  };
  for (int i = item.begin; i < item.end; ++i) {
    const int visible = item.visible - entry_block(p, shared.select, i) * Traits::kBlock;
    float scores[Traits::kKeyTiles][4];
    std::uint32_t probabilities[Traits::kSteps][4];
    shared.ring.wait_full(at);
    multiply_keys<Traits>(scores, s, stages + at.stage * Traits::kTileBytes, warp, lane);
    const unsigned bad = shared.bad_boxes[at.stage];
    release();
    if (visible < Traits::kBlock || bad != 0) {
      mask_scores<Traits>(scores, visible, bad, p.select.batch.page_size, warp, lane);
    }
    softmax_step<Traits>(probabilities, s, scores, p.scale_log2);
    shared.ring.wait_full(at);
    std::uint8_t* values = stages + at.stage * Traits::kTileBytes;
    if (visible < Traits::kBlock) clear_values<Traits>(values, visible, warp, lane);
    multiply_values<Traits>(s, probabilities, values, warp, lane);
    release();
  }
}

/// Columns of one row, four neighbours of every 32: output not normalised, maximum and sum of the
/// row.
template <int kGroupsOfFour>
struct RowPart {
  static constexpr int kGroups = kGroupsOfFour;
  float4 out[kGroups];
  float best;
  float sum;
};

/// A row spread over 8 threads, the first columns of which are part_column(thread).
template <class Traits>
using RowEighth = RowPart<Traits::kDim / 32>;

__device__ __forceinline__ int part_column(int thread) { return thread % 8 * 4; }

template <int kGroups>
__device__ __forceinline__ RowPart<kGroups> empty_part() {
  RowPart<kGroups> part{};
  part.best = -INFINITY;
  return part;
}

/// Leaves the warp's share in shared memory, where the ring was: rows of `scratch` and `state`.
template <class Traits>
__device__ __forceinline__ void publish_share(WarpState<Traits>& s, AttendShared<Traits>& shared,
                                              float* scratch, int thread) {
  const int warp = thread / 32;
  const int lane = thread % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    s.sum[half] = quad::sum(s.sum[half]);
    if ((lane & 3) == 0) shared.state[warp][lane / 4 + half * 8] = {s.best[half], s.sum[half]};
    float* row = scratch + (warp * 16 + lane / 4 + half * 8) * Traits::kMergePitch + (lane & 3) * 2;
#pragma unroll
    for (int i = 0; i < Traits::kDimTiles; ++i) {
      *reinterpret_cast<float2*>(row + i * 8) = {s.out[i][2 * half], s.out[i][2 * half + 1]};
    }
  }
}

/// Adds `weight` times a share to the part.
template <int kGroups>
__device__ __forceinline__ void add_share(RowPart<kGroups>& part, float weight, float sum,
                                          const float4 (&out)[kGroups]) {
  part.sum += weight * sum;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    part.out[j].x += weight * out[j].x;
    part.out[j].y += weight * out[j].y;
    part.out[j].z += weight * out[j].z;
    part.out[j].w += weight * out[j].w;
  }
}

/// What a share counts whose maximum is `best`, where the largest is `whole`: nothing if it saw
/// nothing, so that only a sum of NaN (a NaN score hides from the maximum) comes through.
__device__ __forceinline__ float share_weight(float best, float whole, float scale_log2) {
  return ptx::ex2((best - (whole == -INFINITY ? 0.f : whole)) * scale_log2);
}

/// Joins the four warps' shares; thread t of the 128 consumers ends with an eighth of row t / 8.
template <class Traits>
__device__ __forceinline__ void join_warps(RowEighth<Traits>& part,
                                           const AttendShared<Traits>& shared, const float* scratch,
                                           float scale_log2, int thread) {
  const int row = thread / 8;
  part = empty_part<RowEighth<Traits>::kGroups>();
#pragma unroll
  for (int w = 0; w < Traits::kConsumers; ++w) part.best = fmaxf(part.best, shared.state[w][row].x);
#pragma unroll
  for (int w = 0; w < Traits::kConsumers; ++w) {
    const float2 state = shared.state[w][row];
    const float* share = scratch + (w * 16 + row) * Traits::kMergePitch + part_column(thread);
    float4 out[RowEighth<Traits>::kGroups];
#pragma unroll
    for (int j = 0; j < RowEighth<Traits>::kGroups; ++j)
      out[j] = *reinterpret_cast<const float4*>(share + j * 32);
    add_share(part, share_weight(state.x, part.best, scale_log2), state.y, out);
  }
}

/// Index of a (row, head, tile) among all: arrivals and partial slots.
__device__ __forceinline__ std::int64_t merge_index(const AttendParams& p, const Item& item) {
  return (item.row * p.heads_kv + item.head) * p.tiles + item.tile;
}

/// The splits of one row, in split order, from memory. States first, through shared memory, so that
/// the partials' loads do not wait for each other: one after the other, 16 splits took 11 us.
template <class Traits>
__device__ __forceinline__ void join_splits(RowEighth<Traits>& part, const AttendParams& p,
                                            std::int64_t base, float* scratch, int thread) {
  constexpr int kThreads = Traits::kConsumers * 32;
  auto* states = reinterpret_cast<float2*>(scratch);  // [splits, 16]
  for (int i = thread; i < p.splits * 16; i += kThreads)
    states[i] = __ldcg(p.partial_state + base + i);
  ptx::bar_sync(kBarrierConsumers, kThreads);
  const int row = thread / 8;
  part = empty_part<RowEighth<Traits>::kGroups>();
  for (int i = 0; i < p.splits; ++i) part.best = fmaxf(part.best, states[i * 16 + row].x);
  const float* share = p.partial_out + (base + row) * Traits::kDim + part_column(thread);
#pragma unroll 4
  for (int i = 0; i < p.splits; ++i, share += 16 * Traits::kDim) {
    const float2 state = states[i * 16 + row];
    float4 out[RowEighth<Traits>::kGroups];
#pragma unroll
    for (int j = 0; j < RowEighth<Traits>::kGroups; ++j)
      out[j] = __ldcg(reinterpret_cast<const float4*>(share + j * 32));
    add_share(part, share_weight(state.x, part.best, p.scale_log2), state.y, out);
  }
}

/// Publishes this split; true in the CTA that came last, whose `part` then holds the merge of all
/// splits in split order.
template <class Traits>
__device__ __forceinline__ bool merge_splits(RowEighth<Traits>& part, const AttendParams& p,
                                             const Item& item, AttendShared<Traits>& shared,
                                             float* scratch, int thread) {
  const int row = thread / 8;
  const std::int64_t index = merge_index(p, item);
  const std::int64_t base = index * p.splits * 16;  // rows of partial_out, entries of partial_state
  const std::int64_t mine = base + item.split * 16 + row;
#pragma unroll
  for (int j = 0; j < RowEighth<Traits>::kGroups; ++j) {
    __stcg(reinterpret_cast<float4*>(p.partial_out + mine * Traits::kDim + part_column(thread) +
                                     j * 32),
           part.out[j]);
  }
  if (thread % 8 == 0) __stcg(p.partial_state + mine, {part.best, part.sum});
  __threadfence();
  ptx::bar_sync(kBarrierConsumers, Traits::kConsumers * 32);
  if (thread == 0)
    shared.last_arrival = atomicAdd(p.arrivals + index, 1u) == static_cast<unsigned>(p.splits - 1);
  ptx::bar_sync(kBarrierConsumers, Traits::kConsumers * 32);
  if (shared.last_arrival == 0) return false;
  __threadfence();
  join_splits<Traits>(part, p, base, scratch, thread);
  return true;
}

/// Normalises and writes four columns of every 32 of one row, from `column` on; `lse` goes with
/// column 0.
template <class Traits, int kGroups>
__device__ __forceinline__ void store_row(const AttendParams& p, const RowPart<kGroups>& part,
                                          std::int64_t row, int head, int column) {
  using T = typename Traits::Item;
  constexpr float kLn2 = 0.69314718055994531f;
  const bool empty = part.sum == 0.f;  // nothing visible, or only scores of -inf
  const float inverse = empty ? 0.f : 1.f / part.sum;
  const std::int64_t at = row * p.stride_out_t + head * p.stride_out_h + column;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    const float4& x = part.out[j];
    float values[4] = {x.x * inverse, x.y * inverse, x.z * inverse, x.w * inverse};
    if (empty) values[0] = values[1] = values[2] = values[3] = 0.f;
    if (p.out_vectors) {
      *reinterpret_cast<uint2*>(static_cast<T*>(p.out) + at + j * 32) = {
          ptx::cvt_pack<T>(values[0], values[1]), ptx::cvt_pack<T>(values[2], values[3])};
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (p.out_f32) {
        static_cast<float*>(p.out)[at + j * 32 + i] = values[i];
      } else {
        static_cast<T*>(p.out)[at + j * 32 + i] = static_cast<T>(values[i]);
      }
    }
  }
  if (p.lse != nullptr && column == 0) {
    p.lse[row * p.stride_lse_t + head * p.stride_lse_h] =
        empty ? -INFINITY : (part.best * p.scale_log2 + log2f(part.sum)) * kLn2;
  }
}

/// Logarithm of the rows that a CTA of a cluster finishes.
__device__ __forceinline__ int rows_shift(int splits) { return 5 - __ffs(splits); }

/// Hands this split's part of every row to the CTA of the cluster that finishes the row, and waits
/// for its own.
template <class Traits>
__device__ __forceinline__ void exchange_parts(const AttendParams& p, const Item& item,
                                               const RowEighth<Traits>& part,
                                               AttendShared<Traits>& shared, int thread) {
  const int shift = rows_shift(p.splits);
  const int row = thread / 8;
  const int owner = row >> shift;
  const int slot = (item.split << shift) + row - (owner << shift);
  ptx::barrier_cluster_wait();  // every CTA's barrier is ready
  const std::uint32_t out = ptx::mapa(&shared.exchange[slot][part_column(thread)], owner);
  const std::uint32_t full = ptx::mapa(&shared.exchange_full, owner);
#pragma unroll
  for (int j = 0; j < RowEighth<Traits>::kGroups; ++j)
    ptx::st_async(out + j * 32 * sizeof(float), part.out[j], full);
  if (thread % 8 == 0) {
    ptx::st_async(ptx::mapa(&shared.exchange_state[slot], owner), {part.best, part.sum, 0, 0},
                  full);
  }
  wait(&shared.exchange_full, 0);
}

/// Finishes this CTA's rows of a cluster, from the parts of all splits, in that order.
template <class Traits>
__device__ __forceinline__ void finish_rows(const AttendParams& p, const Item& item,
                                            const AttendShared<Traits>& shared, bool rehearsal,
                                            int thread) {
  constexpr int kFours = Traits::kDim / 4;  // of columns in a row
  constexpr int kMostSplits = 8;
  const int rows = 1 << rows_shift(p.splits);
#pragma unroll 1
  for (int at = thread; at < rows * kFours; at += Traits::kConsumers * 32) {
    const int row = at / kFours;
    const int column = at % kFours * 4;
    RowPart<1> whole = empty_part<1>();
    float4 states[kMostSplits];
#pragma unroll
    for (int i = 0; i < kMostSplits; ++i) {
      states[i] = shared.exchange_state[min(i, p.splits - 1) * rows + row];
      whole.best = fmaxf(whole.best, states[i].x);
    }
#pragma unroll
    for (int i = 0; i < kMostSplits; ++i) {
      const float weight = share_weight(states[i].x, whole.best, p.scale_log2);
      if (i >= p.splits) continue;
      add_share(whole, weight, states[i].y,
                {*reinterpret_cast<const float4*>(&shared.exchange[i * rows + row][column])});
    }
    const int member = item.tile * 16 + item.split * rows + row;
    if (member < p.group && !rehearsal)
      store_row<Traits>(p, whole, item.row, item.head * p.group + member, column);
  }
}

/// Rows behind the last request (padding of CUDA graphs) see nothing: the last request's CTAs write
/// them.
template <class Traits>
__device__ __forceinline__ void store_padding(const AttendParams& p, const RequestRecord& r,
                                              const Item& item, int thread) {
  const BatchParams& batch = p.select.batch;
  if (item.request != max(batch.batch, 1) - 1 || item.split != 0 ||
      thread >= Traits::kConsumers * 32)
    return;
  const int member = item.tile * 16 + thread / 8;
  const auto nothing = empty_part<RowEighth<Traits>::kGroups>();
  for (std::int64_t row = r.q_begin + r.seqlen_q + item.token; row < batch.total_q;
       row += p.select.token_slots) {
    if (member < p.group) {
      store_row<Traits>(p, nothing, row, item.head * p.group + member, part_column(thread));
    }
    if (p.blocks == Blocks::Scored && item.tile == 0) {
      const SelectStorage* unused = nullptr;
      store_selection(p.select, *unused, row, item.head, 0, 0, thread);
    }
  }
}

/// An item from its blocks' tiles to its rows of the output. All threads of the CTA call it.
template <class Traits>
__device__ __forceinline__ void attend_item(const AttendParams& p, const RequestRecord& r,
                                            Item item, AttendShared<Traits>& shared,
                                            std::uint8_t* stages, bool rehearsal, int warp,
                                            int lane) {
  const bool consumes = warp < Traits::kConsumers;
  WarpState<Traits> state;
  reset_output<Traits>(state);
  if (!consumes) {
    produce<Traits>(p, r, item, shared, stages, rehearsal, lane);
  } else if (!rehearsal) {
    load_query<Traits>(state, p, item, lane);
    consume<Traits>(state, p, item, shared, stages, warp, lane);
  }
  float* scratch = reinterpret_cast<float*>(stages);
  __syncthreads();  // every warp has left the ring
  if (consumes) publish_share<Traits>(state, shared, scratch, threadIdx.x);
  __syncthreads();
  if (!consumes) return;
  RowEighth<Traits> part;
  join_warps<Traits>(part, shared, scratch, p.scale_log2, threadIdx.x);
  item = shared.item;  // read again rather than kept in registers
  if (clusters(p.splits)) {
    if (!rehearsal) exchange_parts<Traits>(p, item, part, shared, threadIdx.x);
    return finish_rows<Traits>(p, item, shared, rehearsal, threadIdx.x);
  }
  if (rehearsal) return;
  if (p.splits > 1 && !merge_splits<Traits>(part, p, item, shared, scratch, threadIdx.x)) return;
  const int member = item.tile * 16 + threadIdx.x / 8;
  if (member < p.group) {
    store_row<Traits>(p, part, item.row, item.head * p.group + member, part_column(threadIdx.x));
  }
}

/// Whether this CTA, and with it its cluster, is there while scores are still computed.
__device__ __forceinline__ bool rehearses(const AttendParams& p) {
  const unsigned behind = (blockIdx.z * gridDim.y + blockIdx.y + 1) * gridDim.x;
  return p.blocks == Blocks::Scored && behind <= static_cast<unsigned>(p.rehearsals);
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kCtasPerSm)
    attend_kernel(const __grid_constant__ AttendParams p) {
  extern __shared__ std::uint8_t raw[];
  std::uint8_t* stages = align_shared<1024>(raw);
  auto& shared =
      *reinterpret_cast<AttendShared<Traits>*>(stages + Traits::kStages * Traits::kTileBytes);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    shared.ring.init(Traits::kConsumers);
    ptx::mbarrier_init(&shared.exchange_full, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(&shared.exchange_full,
                                   sizeof(shared.exchange_state) + sizeof(shared.exchange));
    ptx::prefetch_tensormap(&p.k_map);
    ptx::prefetch_tensormap(&p.v_map);
  }
  __syncthreads();
  if (clusters(p.splits)) ptx::barrier_cluster_arrive_relaxed();
  if (warp == Traits::kConsumers && p.blocks == Blocks::Scored)
    touch_pages(p.select.batch, make_item(p).request, lane);
#pragma unroll 1  // the rehearsal runs the very instructions
  for (int act = rehearses(p) ? 0 : 1; act < 2; ++act) {
    const bool rehearsal = act == 0;
    Item item = make_item(p);
    const RequestRecord r = early_request(p.select.batch, p.select.records, item.request);
    item.row = r.q_begin + item.token;
    item.visible = visible_keys(r, item.token, p.select.batch.causal != 0);
    SelectRow row{};
    if (p.blocks == Blocks::Scored) row = select_row(p.select, r, item.token, item.head);
    if (threadIdx.x == 0) shared.item = item;
    if (!rehearsal) {
      ptx::griddepcontrol_wait();
      store_padding<Traits>(p, r, item, threadIdx.x);
    }
    if (item.token >= r.seqlen_q) continue;  // and with it the whole cluster
    find_blocks<Traits>(p, r, item, row, shared, stages, rehearsal);
    attend_item<Traits>(p, r, item, shared, stages, rehearsal, warp, lane);
    if (rehearsal) __syncthreads();
  }
}

}  // namespace msa::cuda::sm90::decode
