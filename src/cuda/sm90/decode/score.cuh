// SPDX-License-Identifier: MIT
// Decode scoring: one CTA an SM streams the index keys of the whole batch, whatever the lengths.
// Warp 4 feeds a ring with steps of 128 keys: first a fixed share, then what it claims from a
// counter, as SMs do not read equally fast. Warps 0 to 3 take 32 keys of each step (mma.sync, keys
// on M, tokens x heads on N) and keep the maxima in shared memory until a span of steps is written.
// A dot product does not care in which order the contraction runs, so both operands take it in the
// order in which 16-byte loads deliver it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/geometry.cuh"
#include "cuda/sm90/decode/launch.h"
#include "cuda/sm90/decode/order.cuh"
#include "cuda/sm90/decode/request.cuh"
#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/ptx/copy.cuh"
#include "cuda/sm90/ptx/matrix.cuh"
#include "cuda/sm90/tile/align.cuh"
#include "cuda/sm90/tile/key_box.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace msa::cuda::sm90::decode {

/// kTiles: columns (tokens x heads of one index-key head) in tiles of 8.
template <class T, int kTilesOfColumns, int kDimension>
struct ScoreTraits {
  using Item = T;
  static constexpr int kTiles = kTilesOfColumns;
  static constexpr int kDim = kDimension;
  static constexpr int kConsumers = 4;  // warps
  static constexpr int kThreads = (kConsumers + 1) * 32;
  static constexpr int kKeys = kScoreStep / kConsumers;  // of a step, for one warp: two m16 tiles
  static constexpr int kChunks = kDim / 32;              // 16-byte loads of a lane along one key
  static constexpr int kColumns = 8 * kTiles;
  static constexpr int kRowBytes = kDim * 2;
  static constexpr int kTileBytes = kScoreStep * kRowBytes;
  // Half of an SM's shared memory: the first CTAs of the attention kernel wait beside this one.
  static constexpr int kRingBytes = 96 * 1024;
  static constexpr int kStages = kRingBytes / kTileBytes;
  static constexpr int kSpan = 16;  // steps whose maxima are written together
};

/// The request of this CTA's first step where all are equally long.
__device__ __forceinline__ int likely_request(const ScoreParams& p) {
  return static_cast<int>(std::int64_t{blockIdx.x} * p.batch.batch / gridDim.x);
}

/// What a stage of the ring holds; request -1: nothing, and nothing follows.
struct StageNote {
  int request;
  int step;
  unsigned bad_boxes;  // boxes whose page id was out of range
};

template <class Traits>
struct ScoreShared {
  Ring<Traits::kStages> ring;
  StageNote notes[Traits::kStages];
  int steps[Traits::kSpan];  // whose maxima follow
  float maxima[Traits::kSpan][Traits::kConsumers][Traits::kColumns];
};

/// Dynamic shared memory: the ring (128-byte aligned), ScoreShared.
template <class Traits>
constexpr int score_shared_bytes() {
  return 128 + Traits::kStages * Traits::kTileBytes + static_cast<int>(sizeof(ScoreShared<Traits>));
}

/// Finds steps, numbered over all requests, by whole warps. Numbers never fall from one find() to
/// the next.
class StepFinder {
 public:
  __device__ __forceinline__ StepFinder(const ScoreParams& params, int lane)
      : params_(params), lane_(lane) {
    const int batch = params.batch.batch;
#pragma unroll 1
    for (int first = 0; first < batch; first += 32) {
      read(first);
      total_ += __shfl_sync(kAll, behind_, 31);
    }
    if (batch <= 32) return;
    first_ = -32;  // from the front again
    behind_ = 0;
  }

  __device__ __forceinline__ std::int64_t count() const { return total_; }

  /// The request and step of number `n` below count(); its record where the request is another one.
  __device__ __forceinline__ void find(std::int64_t n, int& request, int& step, RequestRecord& r) {
#pragma unroll 1
    while (n - before_ >= __shfl_sync(kAll, behind_, 31)) {
      before_ += __shfl_sync(kAll, behind_, 31);
      read(first_ + 32);
    }
    const unsigned owners = __ballot_sync(kAll, n - before_ < behind_);
    const int owner = __ffs(static_cast<int>(owners)) - 1;
    step = static_cast<int>(n - before_ - __shfl_sync(kAll, behind_ - steps_, owner));
    if (first_ + owner == request) return;
    request = first_ + owner;
    r = early_request(params_.batch, params_.records, request);
  }

 private:
  static constexpr unsigned kAll = 0xffffffffu;

  /// The steps of 32 requests; a request without queries has none.
  __device__ __forceinline__ void read(int first) {
    first_ = first;
    steps_ = 0;
    if (first + lane_ < params_.batch.batch) {
      const RequestRecord r = early_request(params_.batch, params_.records, first + lane_);
      if (r.seqlen_q != 0) steps_ = (r.seqlen_k + kScoreStep - 1) / kScoreStep;
    }
    behind_ = steps_;
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const std::int64_t below = __shfl_up_sync(kAll, behind_, lanes);
      if (lane_ >= lanes) behind_ += below;
    }
  }

  const ScoreParams& params_;
  const int lane_;
  int first_ = 0;            // request of lane 0
  int steps_ = 0;            // of this lane's request
  std::int64_t behind_ = 0;  // steps of the group's requests up to this lane's
  std::int64_t before_ = 0;  // of the groups before
  std::int64_t total_ = 0;
};

/// How the steps are dealt out: CTA c takes numbers c * fixed to (c + 1) * fixed - 1, what lies
/// behind those of all CTAs, a quarter at most and what did not divide, is claimed, `claim` at a
/// time.
struct Deal {
  std::int64_t fixed;
  int claim;

  __device__ __forceinline__ Deal(std::int64_t total, int ctas) {
    constexpr std::int64_t kMostClaims = std::int64_t{1} << 30;  // the counter has 32 bits
    const bool small = total < kMostClaims;
    const std::int64_t each =
        small ? static_cast<unsigned>(total) / static_cast<unsigned>(ctas) : total / ctas;
    const bool claims = small && each >= 4;
    fixed = claims ? each - each / 4 : ceil_div(total, std::int64_t{ctas});
    claim = each < 16 ? 1 : each < 64 ? 4 : each < 192 ? 8 : 16;
  }
};

/// Fills one stage with a step.
template <class Traits>
__device__ __forceinline__ unsigned produce_step(const ScoreParams& p, const RequestRecord& r,
                                                 int request, int step,
                                                 RingPosition<Traits::kStages>& at,
                                                 ScoreShared<Traits>& shared, std::uint8_t* stages,
                                                 std::uint64_t policy, int lane) {
  const int box_rows = box_tokens(kScoreStep, p.batch.page_size);
  const int boxes = kScoreStep >> box_shift(kScoreStep, p.batch.page_size);
  KeyBox box;
  if (lane < boxes) box = locate_key_box<kScoreStep>(p.batch, r, request, step, lane);
  const unsigned bad = __ballot_sync(0xffffffffu, lane < boxes && box.bad);
  shared.ring.wait_empty(at);
  if (lane == 0) {
    shared.notes[at.stage] = {request, step, bad};  // the arrival below publishes it
    shared.ring.expect(at, Traits::kTileBytes);
  }
  __syncwarp();
  if (lane < boxes) {
    ptx::cp_async_bulk_tensor_hint(
        stages + at.stage * Traits::kTileBytes + lane * box_rows * Traits::kRowBytes, &p.k_map,
        {0, box.token, static_cast<int>(blockIdx.y), box.page}, &shared.ring.full[at.stage],
        policy);
  }
  at.advance();
  return bad;
}

/// Warp 4: streams this CTA's steps.
template <class Traits>
__device__ __forceinline__ void produce_steps(const ScoreParams& p, ScoreShared<Traits>& shared,
                                              std::uint8_t* stages, int lane) {
  touch_pages(p.batch, likely_request(p), lane);
  const std::uint64_t policy = ptx::createpolicy_evict_first();  // streamed once
  StepFinder finder(p, lane);
  const std::int64_t total = finder.count();
  const int ctas = static_cast<int>(gridDim.x);
  const Deal deal(total, ctas);
  int bad_request = -1;
  int request = -1;
  int step = 0;
  RequestRecord r{};
  RingPosition<Traits::kStages> at;
  const std::int64_t fixed_end = min(deal.fixed * (blockIdx.x + 1), total);
  std::int64_t n = min(deal.fixed * blockIdx.x, total);
  std::int64_t end = max(n, fixed_end - 1);
  bool claiming = false;
  unsigned claimed = 0;
  while (true) {
    if (n == end) {
      // A claim is on its way while the steps before it are loaded, the first one behind the
      // prologue, which clears the counter.
      std::int64_t next = n;
      end = fixed_end;
      if (claiming) {
        next = deal.fixed * ctas + std::int64_t{__shfl_sync(0xffffffffu, claimed, 0)} * deal.claim;
        if (next >= total) break;
        end = min(next + deal.claim, total);
      } else {
        ptx::griddepcontrol_wait();
      }
      claiming = true;
      if (lane == 0) claimed = atomicAdd(p.claims + blockIdx.y, 1u);
      n = next;
      continue;
    }
    finder.find(n, request, step, r);
    const unsigned bad =
        produce_step<Traits>(p, r, request, step, at, shared, stages, policy, lane);
    if (bad != 0 && bad_request < 0) bad_request = request;
    ++n;
  }
  shared.ring.wait_empty(at);
  if (lane == 0) {
    shared.notes[at.stage] = {-1, 0, 0};
    shared.ring.expect(at, 0);
  }
  if (bad_request >= 0 && lane == 0) report(p.batch.status, bad_request, -1, FaultKind::PageId);
}

/// Fragments of the query columns: lane / 4 is the column in its tile, lane % 4 the 16-byte chunk.
template <class Traits>
struct Queries {
  std::uint32_t fragments[Traits::kTiles][Traits::kChunks][4];
  int limit[Traits::kTiles][2];  // visible keys of the accumulator columns that this lane holds
  int min_limit;                 // keys below it are seen by every column
};

template <class Traits>
__device__ __forceinline__ void load_queries(Queries<Traits>& q, const ScoreParams& p,
                                             const RequestRecord& r, int head_k, int lane) {
  const int group = p.heads / p.heads_k;
  const int columns = r.seqlen_q * group;
#pragma unroll
  for (int tile = 0; tile < Traits::kTiles; ++tile) {
    const int column = tile * 8 + lane / 4;
    const bool used = column < columns;
    const std::int64_t row = r.q_begin + (used ? column / group : 0);
    const int head = head_k * group + (used ? column % group : 0);
    const auto* items = static_cast<const typename Traits::Item*>(p.index_q) + row * p.stride_q_t +
                        head * p.stride_q_h;
#pragma unroll
    for (int chunk = 0; chunk < Traits::kChunks; ++chunk) {
      uint4 x{0, 0, 0, 0};
      if (used) x = *reinterpret_cast<const uint4*>(items + chunk * 32 + (lane & 3) * 8);
      q.fragments[tile][chunk][0] = x.x;
      q.fragments[tile][chunk][1] = x.y;
      q.fragments[tile][chunk][2] = x.z;
      q.fragments[tile][chunk][3] = x.w;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int held = tile * 8 + (lane & 3) * 2 + i;
      q.limit[tile][i] = held < columns ? visible_keys(r, held / group, p.batch.causal != 0) : 0;
    }
  }
  q.min_limit = visible_keys(r, 0, p.batch.causal != 0);  // the first token sees least
}

/// A warp's keys of one step.
template <class Traits>
struct StepKeys {
  uint4 items[2][2][Traits::kChunks];  // [m16 tile][row half][chunk]
};

template <class Traits>
__device__ __forceinline__ void read_keys(StepKeys<Traits>& keys, const std::uint8_t* stage,
                                          int warp, int lane) {
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint8_t* row =
          stage + (warp * Traits::kKeys + tile * 16 + half * 8 + lane / 4) * Traits::kRowBytes;
#pragma unroll
      for (int chunk = 0; chunk < Traits::kChunks; ++chunk) {
        keys.items[tile][half][chunk] =
            *reinterpret_cast<const uint4*>(row + chunk * 64 + (lane & 3) * 16);
      }
    }
  }
}

/// Maxima of a warp's keys, the first of which is `first`, for this lane's two columns of every
/// tile; equal in all lanes of a column. `bad`: m16 tiles without a page, as bits.
template <class Traits>
__device__ __forceinline__ void reduce_keys(float (&best)[Traits::kTiles][2],
                                            const StepKeys<Traits>& keys, const Queries<Traits>& q,
                                            int first, unsigned bad, int lane) {
  constexpr float kNegInf = -INFINITY;
  const bool masked = first + Traits::kKeys > q.min_limit || bad != 0;
#pragma unroll
  for (int column_tile = 0; column_tile < Traits::kTiles; ++column_tile) {
    float x[2] = {kNegInf, kNegInf};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      float d[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int chunk = 0; chunk < Traits::kChunks; ++chunk) {
        const uint4& upper = keys.items[tile][0][chunk];
        const uint4& lower = keys.items[tile][1][chunk];
        const std::uint32_t(&b)[4] = q.fragments[column_tile][chunk];
        ptx::mma_m16n8k16<typename Traits::Item>(d, {upper.x, lower.x, upper.y, lower.y}, b[0],
                                                 b[1]);
        ptx::mma_m16n8k16<typename Traits::Item>(d, {upper.z, lower.z, upper.w, lower.w}, b[2],
                                                 b[3]);
      }
      if (masked) {
        const int key = first + tile * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool seen =
              key + (i / 2) * 8 < q.limit[column_tile][i & 1] && ((bad >> tile) & 1) == 0;
          d[i] = seen ? d[i] : kNegInf;
        }
      }
      x[0] = fmaxf(x[0], fmaxf(d[0], d[2]));  // fmaxf drops NaN: a NaN token score counts as -inf
      x[1] = fmaxf(x[1], fmaxf(d[1], d[3]));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2)
        x[i] = fmaxf(x[i], __shfl_xor_sync(0xffffffffu, x[i], lanes));
      best[column_tile][i] = x[i];
    }
  }
}

/// Writes the block scores of `held` steps, whose maxima lie in shared memory.
template <class Traits>
__device__ __forceinline__ void store_span(const ScoreParams& p, const RequestRecord& r,
                                           const ScoreShared<Traits>& shared, int head_k, int held,
                                           int thread) {
  const int shift = __ffs(p.batch.block_size) - 1;
  const int per_step = kScoreStep >> shift;              // blocks
  const int warps = p.batch.block_size / Traits::kKeys;  // that share a block
  const int num_blocks = (r.seqlen_k + p.batch.block_size - 1) >> shift;
  const int group = p.heads / p.heads_k;
  const int columns = r.seqlen_q * group;
  const float* maxima = &shared.maxima[0][0][0];  // warp after warp, keys of a step ascending
  for (int i = thread; i < held * per_step * columns; i += Traits::kConsumers * 32) {
    const int at = i / columns;
    const int column = i - at * columns;
    const int block = shared.steps[at / per_step] * per_step + at % per_step;
    if (block >= num_blocks) continue;
    float best = -INFINITY;
    for (int warp = 0; warp < warps; ++warp)
      best = fmaxf(best, maxima[(at * warps + warp) * Traits::kColumns + column]);
    if (p.orders) best = __uint_as_float(row_blocks(p.batch, r, column / group).order(best, block));
    const std::int64_t row = r.q_begin + column / group;
    const int head = head_k * group + column % group;
    p.scores
        .data[row * p.scores.stride_t + head * p.scores.stride_h + block * p.scores.stride_block] =
        best;
  }
}

/// Warps 0 to 3: scores what the ring brings.
template <class Traits>
__device__ __forceinline__ void score_steps(const ScoreParams& p, ScoreShared<Traits>& shared,
                                            const std::uint8_t* stages, int warp, int lane) {
  constexpr int kConsumerThreads = Traits::kConsumers * 32;
  constexpr int kBarrierConsumers = 1;
  const int head_k = static_cast<int>(blockIdx.y);
  const int shift = box_shift(kScoreStep, p.batch.page_size);  // keys of a box
  int wanted = likely_request(p);  // its queries arrive while the first step is loaded
  int request = -1;
  RequestRecord r{};
  Queries<Traits> q;
  int held = 0;
  RingPosition<Traits::kStages> at;
  while (true) {
    if (request != wanted) {
      request = wanted;
      r = early_request(p.batch, p.records, request);
      load_queries<Traits>(q, p, r, head_k, lane);
    }
    shared.ring.wait_full(at);
    const StageNote note = shared.notes[at.stage];
    if (held == Traits::kSpan || note.request != request) {
      ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
      ptx::griddepcontrol_wait();  // of block_scores: -inf is written before
      store_span<Traits>(p, r, shared, head_k, held, threadIdx.x);
      if (note.request < 0) return;
      ptx::bar_sync(kBarrierConsumers, kConsumerThreads);
      held = 0;
      wanted = note.request;
      continue;
    }
    StepKeys<Traits> keys;
    read_keys<Traits>(keys, stages + at.stage * Traits::kTileBytes, warp, lane);
    __syncwarp();
    if (lane == 0) shared.ring.release(at);
    at.advance();
    unsigned bad = note.bad_boxes;
    if (bad != 0) {
      const int key = warp * Traits::kKeys;
      bad = ((bad >> (key >> shift)) & 1) | ((bad >> ((key + 16) >> shift)) & 1) << 1;
    }
    float best[Traits::kTiles][2];
    reduce_keys<Traits>(best, keys, q, note.step * kScoreStep + warp * Traits::kKeys, bad, lane);
    if (threadIdx.x == 0) shared.steps[held] = note.step;
    if (lane < 4) {
#pragma unroll
      for (int tile = 0; tile < Traits::kTiles; ++tile) {
        float* columns = shared.maxima[held][warp] + tile * 8 + lane * 2;
        columns[0] = best[tile][0];
        columns[1] = best[tile][1];
      }
    }
    ++held;
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    score_kernel(const __grid_constant__ ScoreParams p) {
  extern __shared__ std::uint8_t raw[];
  std::uint8_t* stages = align_shared<128>(raw);
  auto& shared =
      *reinterpret_cast<ScoreShared<Traits>*>(stages + Traits::kStages * Traits::kTileBytes);
  ptx::griddepcontrol_launch_dependents();
  if (threadIdx.x == 0) {
    ptx::prefetch_tensormap(&p.k_map);
    shared.ring.init(Traits::kConsumers);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (warp < Traits::kConsumers) return score_steps<Traits>(p, shared, stages, warp, lane);
  produce_steps<Traits>(p, shared, stages, lane);
}

}  // namespace msa::cuda::sm90::decode
