// SPDX-License-Identifier: MIT
// A warp a (row, query head): the shares of the blocks that the row attends to, in the order of its
// list, become dq. Who attends to nothing has zeros.
#include "cuda/common/backward/launch.h"
#include "cuda/common/backward/places.cuh"
#include "cuda/common/backward/shares.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/steps.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/geometry.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::backward {
namespace {

constexpr int kQueryWarps = 8;

/// kItems neighbouring items of rows of shares, in their order: sums of them all. Four rows are
/// read at a time, as one's latency is as long as what all warps of a multiprocessor read in it;
/// they are added in the order in which they came.
template <int kItems>
class ShareReader {
 public:
  __device__ __forceinline__ ShareReader(const Shares& shares, int group, int head, int lane)
      : shares_(shares), group_(group), head_(head), lane_(lane) {}

  __device__ __forceinline__ void add(std::int64_t slot, float (&sums)[kItems]) {
    // No index that is not a constant: a share behind the last is not read.
    slots_[3] = slots_[2];
    slots_[2] = slots_[1];
    slots_[1] = slots_[0];
    slots_[0] = slot;
    if (++waiting_ == kAtOnce) finish(sums);
  }

  /// Adds those that wait.
  __device__ __forceinline__ void finish(float (&sums)[kItems]) {
    std::uint32_t pairs[kAtOnce][kItems / 2];
    float sizes[kAtOnce];
#pragma unroll
    for (int i = kAtOnce - 1; i >= 0; --i) {
      if (i < waiting_) read(slots_[i], pairs[i], sizes[i]);
    }
#pragma unroll
    for (int i = kAtOnce - 1; i >= 0; --i) {
      if (i < waiting_) add_read(pairs[i], sizes[i], sums);
    }
    waiting_ = 0;
  }

 private:
  static constexpr int kAtOnce = 4;
  static constexpr int kDim = 32 * kItems;

  __device__ __forceinline__ void read(std::int64_t slot, std::uint32_t (&pairs)[kItems / 2],
                                       float& size) const {
    const std::int64_t row = slot * group_ + head_;
    size = shares_.sizes[row * (kDim / shares_.part_dims) + lane_ * kItems / shares_.part_dims];
    const std::uint16_t* from = shares_.steps + row * kDim + lane_ * kItems;
    if constexpr (kItems == 4) {
      const uint2 both = *reinterpret_cast<const uint2*>(from);
      pairs[0] = both.x;
      pairs[1] = both.y;
    } else {
      pairs[0] = *reinterpret_cast<const std::uint32_t*>(from);
    }
  }

  __device__ __forceinline__ static void add_read(const std::uint32_t (&pairs)[kItems / 2],
                                                  float size, float (&sums)[kItems]) {
    const bool odd = (__float_as_uint(size) >> 31) != 0;
#pragma unroll
    for (int i = 0; i < kItems; i += 2) {
      const float2 pair = odd ? unpack_odd(pairs[i / 2]) : unpack_steps(pairs[i / 2]);
      sums[i] = fmaf(pair.x, fabsf(size), sums[i]);
      sums[i + 1] = fmaf(pair.y, fabsf(size), sums[i + 1]);
    }
  }

  const Shares& shares_;
  const int group_;
  const int head_;  // in its group
  const int lane_;
  std::int64_t slots_[kAtOnce] = {};
  int waiting_ = 0;
};

/// Where lse and delta are numbers, what is not came from keys that may be another row's.
template <int kItems>
__device__ __forceinline__ void note_row(const QueryParams& params, std::int64_t row, int head,
                                         const float (&sums)[kItems]) {
  if (params.suspects.any == nullptr) return;
  const Pairs& p = params.pairs;
  float probe = 0.0f;
#pragma unroll
  for (int i = 0; i < kItems; ++i) probe = fmaf(sums[i], 0.0f, probe);
  if (!warp::any(probe != 0.0f) || threadIdx.x % 32 != 0) return;
  const bool own =
      isnan(item_of(params.lse, row, head) + params.delta[row * (p.heads_kv * p.group) + head]);
  if (!own) note(params.suspects, row * p.heads_kv + head / p.group);
}

template <class Item, int kItems>
__global__ void __launch_bounds__(kQueryWarps * 32)
    queries_kernel(const __grid_constant__ QueryParams params) {
  if (params.wanted != nullptr && *params.wanted == 0) return;
  const Pairs& p = params.pairs;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto heads = static_cast<unsigned>(p.heads_kv * p.group);
  const unsigned pair = blockIdx.x * kQueryWarps + threadIdx.x / 32;  // below 2^31
  const unsigned token = pair / heads;
  if (token >= p.row_end - p.row_begin) return;
  const std::int64_t row = p.row_begin + token;
  const auto head = static_cast<int>(pair - token * heads);
  const int head_kv = head / p.group;
  float sums[kItems] = {};
  const int request = owner_of(p.batch, p.requests, row);
  const bool attends = request >= 0 && item_of(params.lse, row, head) != kMinusInf;
  if (attends) {
    ShareReader<kItems> shares(params.shares, p.group, head - head_kv * p.group, lane);
    const std::int64_t first = (std::int64_t{token} * p.heads_kv + head_kv) * p.places;
    for_each_place(p, p.requests[request], row, head_kv, lane,
                   [&](int place) { shares.add(first + place, sums); });
    shares.finish(sums);
    note_row(params, row, head, sums);
  }
  float scale = params.scale;
  // The weight of a row that attends to nothing may be anything.
  if (attends && params.weights != nullptr) scale *= params.weights[row * params.stride_weights];
#pragma unroll
  for (int i = 0; i < kItems; i += 2) {
    const int column = share_column(lane * kItems + i, params.shares.part_dims);
    if (params.f32 != 0) {
      float* to = row_of<float>(params.dq, row, head) + column;
      to[0] = sums[i] * scale;
      to[1] = sums[i + 1] * scale;
    } else {
      Item* to = row_of<Item>(params.dq, row, head) + column;
      to[0] = Item(sums[i] * scale);
      to[1] = Item(sums[i + 1] * scale);
    }
  }
}

}  // namespace

void launch_queries(Storage storage, const QueryParams& params, cudaStream_t stream) {
  const Pairs& p = params.pairs;
  const std::int64_t pairs = (p.row_end - p.row_begin) * p.heads_kv * p.group;
  const LaunchConfig config{.grid = dim3(static_cast<unsigned>(ceil_div(pairs, kQueryWarps))),
                            .block = dim3(kQueryWarps * 32),
                            .stream = stream};
  with_item(storage, [&]<class Item>() {
    if (params.head_dim == 128) {
      launch_kernel(queries_kernel<Item, 4>, config, params);
    } else {
      launch_kernel(queries_kernel<Item, 2>, config, params);
    }
  });
}

}  // namespace msa::cuda::common::backward
