// SPDX-License-Identifier: MIT
// A warp for eight query heads of a row, two at a time: the shares of the blocks that the row
// attends to, in the order of its list, become dq. Who attends to nothing has zeros.
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
constexpr int kHeadLanes = 16;  // of a head
constexpr int kFewPlaces = 32;  // of a row: a lane has one

/// kFew: rows have no more places than lanes.
template <bool kFew>
struct Unit {
  static constexpr int kHeads = kFew ? 8 : 2;  // a warp's, of a token
  static constexpr int kCtasPerSm = kFew ? 4 : 3;

  static __host__ __device__ __forceinline__ int of_group(int group) {
    return (group + kHeads - 1) / kHeads;
  }
};

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

  /// Adds the shares of `count` places, of which each lane has one.
  __device__ __forceinline__ void add(int count, int place, float (&sums)[kItems]) {
#pragma unroll 1
    for (int first = 0; first < count; first += kAtOnce) {
      std::uint32_t pairs[kAtOnce][kItems / 2];
      float sizes[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int from = __shfl_sync(kAllLanes, place, first + i);
        if (first + i < count) read(from, pairs[i], sizes[i]);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < count) add_read(pairs[i], sizes[i], sums);
      }
    }
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

/// The places of a row, as many as lanes at a time, each of which has one. kFew: that is all of
/// them, found once for the heads of a unit; else they are looked for again for each two heads.
template <bool kFew>
class RowPlaces {
 public:
  __device__ __forceinline__ RowPlaces(const Pairs& p, const RequestRecord& request,
                                       std::int64_t row, int head, int lane)
      : pairs_(p), request_(request), row_(row), head_(head), lane_(lane) {
    if constexpr (kFew) find([](int, int) {});
  }

  /// Calls visit(count, place of this lane).
  template <class Visit>
  __device__ __forceinline__ void for_each(const Visit& visit) {
    if constexpr (!kFew) {
      count_ = 0;
      find(visit);
    }
    visit(count_, own_);
  }

 private:
  /// Visits all but the last ones.
  template <class Visit>
  __device__ __forceinline__ void find(const Visit& visit) {
    for_each_place(pairs_, request_, row_, head_, lane_, [&](int place) {
      if (!kFew && count_ == kFewPlaces) {
        visit(count_, own_);
        count_ = 0;
      }
      if (lane_ == count_) own_ = place;
      ++count_;
    });
  }

  const Pairs& pairs_;
  const RequestRecord& request_;
  const std::int64_t row_;
  const int head_;
  const int lane_;
  int own_ = 0;
  int count_ = 0;
};

/// A head of a row of the launch, or with `there` 0 nothing, a half of the warp each; `places`
/// nullptr: the row is nobody's.
template <class Item, int kItems, bool kFew>
__device__ __forceinline__ void add_up(const QueryParams& params, RowPlaces<kFew>* places,
                                       unsigned token, int head_kv, int head, bool there) {
  const Pairs& p = params.pairs;
  const int member = static_cast<int>(threadIdx.x % kHeadLanes);
  const std::int64_t row = p.row_begin + token;
  float sums[kItems] = {};
  const bool attends = there && places != nullptr && item_of(params.lse, row, head) != kMinusInf;
  if (warp::any(attends)) {
    const std::int64_t first = (std::int64_t{token} * p.heads_kv + head_kv) * p.places;
    ShareReader<kItems> shares(params.shares, first * p.group + head - head_kv * p.group, p.group,
                               member);
    places->for_each([&](int count, int place) { shares.add(count, place, sums); });
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

/// The heads of a unit, two at a time; of an odd number the upper lanes have nothing of the last.
template <class Item, int kItems, bool kFew>
__device__ __forceinline__ void add_up_unit(const QueryParams& params, unsigned token, int unit) {
  const Pairs& p = params.pairs;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t row = p.row_begin + token;
  const int units = Unit<kFew>::of_group(p.group);
  const int head_kv = unit / units;
  const int first = (unit - head_kv * units) * Unit<kFew>::kHeads;  // of the group
  const int last = min(first + Unit<kFew>::kHeads, p.group);
  const int request = owner_of(p.batch, p.requests, row);
  const auto add_heads = [&](RowPlaces<kFew>* places) {
#pragma unroll 1
    for (int two = first; two < last; two += 2) {
      const int own = two + lane / kHeadLanes;
      add_up<Item, kItems>(params, places, token, head_kv, head_kv * p.group + min(own, last - 1),
                           own < last);
      if constexpr (Unit<kFew>::kHeads == 2) break;
    }
  };
  if (request < 0) return add_heads(nullptr);
  RowPlaces<kFew> places(p, p.requests[request], row, head_kv, lane);
  add_heads(&places);
}

template <class Item, int kItems, bool kFew>
__global__ void __launch_bounds__(kQueryWarps * 32, Unit<kFew>::kCtasPerSm)
    queries_kernel(const __grid_constant__ QueryParams params) {
  if (params.wanted != nullptr && *params.wanted == 0) return;
  const Pairs& p = params.pairs;
  const unsigned units = p.heads_kv * Unit<kFew>::of_group(p.group);        // of a token
  const auto end = static_cast<unsigned>(p.row_end - p.row_begin) * units;  // below 2^31
  for (unsigned unit = blockIdx.x * kQueryWarps + threadIdx.x / 32; unit < end;
       unit += gridDim.x * kQueryWarps)
    add_up_unit<Item, kItems, kFew>(params, unit / units, static_cast<int>(unit % units));
}

}  // namespace

void launch_queries(Storage storage, const QueryParams& params, cudaStream_t stream) {
  const Pairs& p = params.pairs;
  const bool few = p.places <= kFewPlaces;
  const std::int64_t warps = (p.row_end - p.row_begin) * p.heads_kv *
                             (few ? Unit<true>::of_group(p.group) : Unit<false>::of_group(p.group));
  const std::int64_t ctas = std::min(ceil_div(warps, kQueryWarps), kMaxQueryCtas);
  const LaunchConfig config{
      .grid = dim3(static_cast<unsigned>(ctas)), .block = dim3(kQueryWarps * 32), .stream = stream};
  with_item(storage, [&]<class Item>() {
    const auto launch = [&]<int kItems>() {
      if (few) {
        launch_kernel(queries_kernel<Item, kItems, true>, config, params);
      } else {
        launch_kernel(queries_kernel<Item, kItems, false>, config, params);
      }
    };
    if (params.head_dim == 128) {
      launch.template operator()<8>();
    } else {
      launch.template operator()<4>();
    }
  });
}

}  // namespace msa::cuda::common::backward
