// SPDX-License-Identifier: MIT
// A warp for two query heads of a row: the shares of the blocks that the row attends to, in the
// order of its list, become dq. Who attends to nothing has zeros.
#include <algorithm>

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
// More wait for room; a launch of which nothing is wanted ends sooner.
constexpr std::int64_t kMaxQueryCtas = 2048;
constexpr int kQueryCtasPerSm = 4;
constexpr int kHeadLanes = 16;  // of a head

/// Eight or four neighbouring items of rows of shares, in their order: sums of them all. Four rows
/// are read at a time, as one's latency is as long as what all warps of a multiprocessor read in
/// it; they are added in the order in which they came.
template <int kItems>
class ShareReader {
 public:
  /// From row `first` of the shares on; rows of the next place are `group` behind it.
  __device__ __forceinline__ ShareReader(const Shares& shares, std::int64_t first, int group,
                                         int member)
      : steps_(shares.steps + first * kDim + member * kItems),
        sizes_(shares.sizes + first * (kDim / shares.part_dims) +
               member * kItems / shares.part_dims),
        group_(group),
        parts_(kDim / shares.part_dims) {}

  __device__ __forceinline__ void add(int place, float (&sums)[kItems]) {
    // No index that is not a constant: a share behind the last is not read.
    places_[3] = places_[2];
    places_[2] = places_[1];
    places_[1] = places_[0];
    places_[0] = place;
    if (++waiting_ == kAtOnce) finish(sums);
  }

  /// Adds those that wait.
  __device__ __forceinline__ void finish(float (&sums)[kItems]) {
    std::uint32_t pairs[kAtOnce][kItems / 2];
    float sizes[kAtOnce];
#pragma unroll
    for (int i = kAtOnce - 1; i >= 0; --i) {
      if (i < waiting_) read(places_[i], pairs[i], sizes[i]);
    }
#pragma unroll
    for (int i = kAtOnce - 1; i >= 0; --i) {
      if (i < waiting_) add_read(pairs[i], sizes[i], sums);
    }
    waiting_ = 0;
  }

 private:
  static constexpr int kAtOnce = 4;
  static constexpr int kDim = kHeadLanes * kItems;

  __device__ __forceinline__ void read(int place, std::uint32_t (&pairs)[kItems / 2],
                                       float& size) const {
    const std::int64_t row = std::int64_t{place} * group_;
    size = sizes_[row * parts_];
    const std::uint16_t* from = steps_ + row * kDim;
    if constexpr (kItems == 8) {
      const uint4 all = *reinterpret_cast<const uint4*>(from);
      pairs[0] = all.x;
      pairs[1] = all.y;
      pairs[2] = all.z;
      pairs[3] = all.w;
    } else {
      const uint2 both = *reinterpret_cast<const uint2*>(from);
      pairs[0] = both.x;
      pairs[1] = both.y;
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

  const std::uint16_t* steps_;
  const float* sizes_;
  const int group_;
  const int parts_;
  int places_[kAtOnce] = {};
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
  if (probe == 0.0f) return;
  const bool own =
      isnan(item_of(params.lse, row, head) + params.delta[row * (p.heads_kv * p.group) + head]);
  if (!own) note(params.suspects, row * p.heads_kv + head / p.group);
}

/// Two heads of a token of the launch: a head a half of the warp. `two`: of all such pairs of
/// heads; of a group of odd size the upper lanes of the last have nothing.
template <class Item, int kItems>
__device__ __forceinline__ void add_up(const QueryParams& params, unsigned token, int two) {
  const Pairs& p = params.pairs;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int member = lane % kHeadLanes;
  const int twos = (p.group + 1) / 2;
  const std::int64_t row = p.row_begin + token;
  const int head_kv = two / twos;
  const int own = 2 * (two - head_kv * twos) + lane / kHeadLanes;  // of the group
  const bool there = own < p.group;
  const int head = head_kv * p.group + min(own, p.group - 1);
  float sums[kItems] = {};
  const int request = owner_of(p.batch, p.requests, row);
  const bool attends = there && request >= 0 && item_of(params.lse, row, head) != kMinusInf;
  if (warp::any(attends)) {
    const std::int64_t first = (std::int64_t{token} * p.heads_kv + head_kv) * p.places;
    ShareReader<kItems> shares(params.shares, first * p.group + head - head_kv * p.group, p.group,
                               member);
    for_each_place(p, p.requests[request], row, head_kv, lane,
                   [&](int place) { shares.add(place, sums); });
    shares.finish(sums);
    if (attends) note_row(params, row, head, sums);
  }
  if (!there) return;
  float scale = params.scale;
  // The weight of a row that attends to nothing may be anything, and so may its shares.
  if (attends && params.weights != nullptr) scale *= params.weights[row * params.stride_weights];
#pragma unroll
  for (int i = 0; i < kItems; i += 2) {
    const int column = share_column(member * kItems + i, params.shares.part_dims);
    const float lower = attends ? sums[i] * scale : 0.0f;
    const float upper = attends ? sums[i + 1] * scale : 0.0f;
    if (params.f32 != 0) {
      float* to = row_of<float>(params.dq, row, head) + column;
      to[0] = lower;
      to[1] = upper;
    } else {
      Item* to = row_of<Item>(params.dq, row, head) + column;
      to[0] = Item(lower);
      to[1] = Item(upper);
    }
  }
}

template <class Item, int kItems>
__global__ void __launch_bounds__(kQueryWarps * 32, kQueryCtasPerSm)
    queries_kernel(const __grid_constant__ QueryParams params) {
  if (params.wanted != nullptr && *params.wanted == 0) return;
  const Pairs& p = params.pairs;
  const auto twos = static_cast<unsigned>(p.heads_kv * ((p.group + 1) / 2));  // of a token
  const auto end = static_cast<unsigned>(p.row_end - p.row_begin) * twos;     // below 2^31
  for (unsigned two = blockIdx.x * kQueryWarps + threadIdx.x / 32; two < end;
       two += gridDim.x * kQueryWarps)
    add_up<Item, kItems>(params, two / twos, static_cast<int>(two % twos));
}

}  // namespace

void launch_queries(Storage storage, const QueryParams& params, cudaStream_t stream) {
  const Pairs& p = params.pairs;
  const std::int64_t warps = (p.row_end - p.row_begin) * p.heads_kv * ((p.group + 1) / 2);
  const std::int64_t ctas = std::min(ceil_div(warps, kQueryWarps), kMaxQueryCtas);
  const LaunchConfig config{
      .grid = dim3(static_cast<unsigned>(ctas)), .block = dim3(kQueryWarps * 32), .stream = stream};
  with_item(storage, [&]<class Item>() {
    if (params.head_dim == 128) {
      launch_kernel(queries_kernel<Item, 8>, config, params);
    } else {
      launch_kernel(queries_kernel<Item, 4>, config, params);
    }
  });
}

}  // namespace msa::cuda::common::backward
