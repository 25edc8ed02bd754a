// SPDX-License-Identifier: MIT
// Gradients of queries of single (token, KV head) pairs, from their own keys alone: those whose
// tile ended non-finite. A CTA a pair; a warp has one query head at a time, a lane one key of every
// 32, then four columns of dq. All in f32, on scalar units: rows at fault are few.
#include "cuda/common/attend/params.h"
#include "cuda/common/attend/suspects.cuh"
#include "cuda/common/backward/launch.h"
#include "cuda/common/lists.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::backward {
namespace {

constexpr int kMendDim = 128;
constexpr int kMendWarps = 8;
constexpr int kMendKeys = 32;             // of a step
constexpr int kMendRow = kMendDim + 4;    // items between rows: lanes meet no bank twice
constexpr int kLaneDims = kMendDim / 32;  // columns of a lane

template <class Item>
struct MendShared {
  alignas(16) float q[kMendWarps][kMendDim];
  alignas(16) float dout[kMendWarps][kMendDim];
  alignas(16) Item k[kMendKeys][kMendRow];
  alignas(16) Item v[kMendKeys][kMendRow];
  int blocks[attend::kMaxTopk];
};

/// The four items from `column` on.
template <class Item>
__device__ __forceinline__ void read_four(const Item (&row)[kMendRow], int column, float (&to)[4]) {
  alignas(8) Item items[4];
  *reinterpret_cast<uint2*>(items) = *reinterpret_cast<const uint2*>(row + column);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = to_float(items[i]);
}

/// One warp's row: a query head of the pair's token, or none of it.
template <class Item>
class MendedRow {
 public:
  __device__ __forceinline__ MendedRow(const MendParams& params, MendShared<Item>& shared,
                                       std::int64_t token, int head, bool wanted)
      : params_(params),
        shared_(shared),
        token_(token),
        head_(head),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32),
        wanted_(wanted) {
    if (!wanted_) return;
    const float lse = item_of(params_.lse, token_, head_);
    sees_ = lse != kMinusInf;
    lse_ = lse * kLog2e;
    delta_ = params_.delta[token_ * (params_.pairs.heads_kv * params_.pairs.group) + head_];
    const Item* q = row_of<Item>(params_.q, token_, head_);
    const Item* dout = row_of<Item>(params_.dout, token_, head_);
    for (int d = lane_; d < kMendDim; d += 32) {
      shared_.q[warp_][d] = to_float(q[d]);
      shared_.dout[warp_][d] = to_float(dout[d]);
    }
    __syncwarp();
  }

  /// Adds the first `keys` keys of shared memory.
  __device__ __forceinline__ void add(int keys) {
    if (!wanted_ || !sees_) return;
    float gradient = 0.0f;  // of this lane's score
    if (lane_ < keys) {
      const float s = product(shared_.q[warp_], shared_.k[lane_]);
      const float dp = product(shared_.dout[warp_], shared_.v[lane_]);
      gradient = ptx::ex2(fmaf(s, params_.scale_log2, -lse_)) * (dp - delta_);
    }
    for (int key = 0; key < keys; ++key) {
      const float ds = __shfl_sync(kAllLanes, gradient, key);
      float k[kLaneDims];
      read_four(shared_.k[key], kLaneDims * lane_, k);
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) sums_[i] = fmaf(ds, k[i], sums_[i]);
    }
  }

  __device__ __forceinline__ void store() const {
    if (!wanted_) return;
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) {
      const int column = kLaneDims * lane_ + i;
      const float x = sums_[i] * params_.scale;
      if (params_.f32 != 0) {
        row_of<float>(params_.dq, token_, head_)[column] = x;
      } else {
        row_of<Item>(params_.dq, token_, head_)[column] = Item(x);
      }
    }
  }

 private:
  __device__ __forceinline__ static float product(const float (&row)[kMendDim],
                                                  const Item (&key)[kMendRow]) {
    float sum = 0.0f;
#pragma unroll 4
    for (int d = 0; d < kMendDim; d += 4) {
      const float4 x = *reinterpret_cast<const float4*>(row + d);
      float y[4];
      read_four(key, d, y);
      sum = fmaf(x.x, y[0], sum);
      sum = fmaf(x.y, y[1], sum);
      sum = fmaf(x.z, y[2], sum);
      sum = fmaf(x.w, y[3], sum);
    }
    return sum;
  }

  const MendParams& params_;
  MendShared<Item>& shared_;
  const std::int64_t token_;
  const int head_;  // of q
  const int warp_;
  const int lane_;
  const bool wanted_;
  bool sees_ = false;
  float lse_ = 0.0f;  // to base 2
  float delta_ = 0.0f;
  float sums_[kLaneDims] = {};
};

/// Copies keys and values from row `first` of the tensors on; all threads.
template <class Item>
__device__ __forceinline__ void load_step(const MendParams& params, MendShared<Item>& shared,
                                          std::int64_t first, int head, int keys) {
  const auto copy = [&](const Rows<const void>& from, Item(&to)[kMendKeys][kMendRow]) {
    constexpr int kVectors = kMendDim / 4;  // of 8 bytes
    for (int i = static_cast<int>(threadIdx.x); i < keys * kVectors; i += kMendWarps * 32) {
      const Item* row = row_of<Item>(from, first + i / kVectors, head);
      *reinterpret_cast<uint2*>(to[i / kVectors] + i % kVectors * 4) =
          *reinterpret_cast<const uint2*>(row + i % kVectors * 4);
    }
  };
  __syncthreads();
  copy(params.k, shared.k);
  copy(params.v, shared.v);
  __syncthreads();
}

/// The blocks that the token listed and sees, in shared memory; returns how many. Dense: all that
/// it sees, which nobody writes down. All threads call it and meet in it.
__device__ __forceinline__ int list_blocks(const Pairs& p, const RequestRecord& request,
                                           std::int64_t token, int head, int visible, int* blocks) {
  const auto end = static_cast<int>(ceil_div(visible, p.batch.block_size));
  if (p.listed == 0) return end;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const ListReader reader(request, p.batch.block_size, end);
  int count = 0;
  __syncthreads();
  warp::for_each_listed(p.lists, reader, token, head, lane, [&](int, const ListedBlock& listed) {
    const unsigned lanes = __ballot_sync(kAllLanes, listed.block >= 0);
    if (threadIdx.x < 32 && listed.block >= 0)
      blocks[count + __popc(lanes & lanes_below(lane))] = listed.block;
    count += __popc(lanes);
  });
  __syncthreads();
  return count;
}

template <class Item>
__global__ void __launch_bounds__(kMendWarps * 32, 2)
    mend_kernel(const __grid_constant__ MendParams params) {
  __shared__ MendShared<Item> shared;
  if (*params.suspects.any == 0) return;
  const Pairs& p = params.pairs;
  const auto warp = static_cast<int>(threadIdx.x / 32);
  attend::SuspectFinder finder;
  const std::int64_t pairs = p.batch.total_q * p.heads_kv;
  for (;;) {
    const std::int64_t pair =
        finder.next(params.suspects, pairs, static_cast<int>(threadIdx.x % 32));
    if (pair < 0) return;
    const std::int64_t token = pair / p.heads_kv;
    const auto head = static_cast<int>(pair - token * p.heads_kv);
    const int request = owner_of(p.batch, p.requests, token);
    int visible = 0;
    int blocks = 0;
    if (request >= 0) {
      visible = visible_keys(p.requests[request], token - p.requests[request].q_begin,
                             p.batch.causal != 0);
      blocks = list_blocks(p, p.requests[request], token, head, visible, shared.blocks);
    }
#pragma unroll 1
    for (int first = 0; first < p.group; first += kMendWarps) {
      MendedRow<Item> row(params, shared, token, head * p.group + first + warp,
                          first + warp < p.group);
      const int size = p.batch.block_size;
#pragma unroll 1
      for (int step = 0; step < blocks * (size / kMendKeys); ++step) {
        const int number = step / (size / kMendKeys);
        const int block = p.listed == 0 ? number : shared.blocks[number];
        const int key = block * size + step % (size / kMendKeys) * kMendKeys;
        const int keys = min(kMendKeys, visible - key);
        if (keys <= 0) continue;
        load_step(params, shared, p.requests[request].k_begin + key, head, keys);
        row.add(keys);
      }
      row.store();
    }
  }
}

}  // namespace

void launch_mend(Storage storage, const MendParams& params, int ctas, cudaStream_t stream) {
  with_item(storage, [&]<class Item>() {
    if constexpr (sizeof(Item) == 2) {
      launch_kernel(mend_kernel<Item>,
                    {.grid = dim3(static_cast<unsigned>(ctas)),
                     .block = dim3(kMendWarps * 32),
                     .stream = stream},
                    params);
    }
  });
}

}  // namespace msa::cuda::common::backward
