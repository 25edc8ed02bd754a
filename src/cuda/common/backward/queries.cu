// SPDX-License-Identifier: MIT
// A warp for a few query heads of a row: the shares of the blocks that the row attends to, in the
// order of its list, become dq. Who attends to nothing has zeros.
#include <algorithm>

#include "cuda/common/backward/launch.h"
#include "cuda/common/backward/places.cuh"
#include "cuda/common/backward/shares.cuh"
#include "cuda/common/ptx/math.cuh"
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

/// What a warp does. kFew: rows have no more places than lanes. kTwos: so many times two heads,
/// whose shares lie side by side.
template <int kDims, bool few, int twos>
struct UnitOf {
  static constexpr int kItems = kDims / kHeadLanes;  // of a lane
  static constexpr bool kFew = few;
  static constexpr int kTwos = twos;
  static constexpr int kHeads = 2 * kTwos;
  // More warps gain more than more of what one reads at a time.
  static constexpr int kCtasPerSm = kFew ? 4 : 3;
  static constexpr int kAtOnce = 4 / kTwos;  // places on their way to a lane

  static __host__ __device__ __forceinline__ int of_group(int group) {
    return (group + kHeads - 1) / kHeads;
  }
};

/// Eight or four neighbouring items of rows of shares, in their order: sums of them all. Several
/// places are read at a time, as the latency of one is as long as what all warps of a
/// multiprocessor read in it; they are added in the order in which they came.
template <class Unit>
class ShareReader {
 public:
  using Sums = float[Unit::kTwos][Unit::kItems];

  /// From row `first` of the shares on, that of the first head of a group in its first place;
  /// heads[i]: a head of the group.
  __device__ __forceinline__ ShareReader(const Shares& shares, std::int64_t first, int group,
                                         const int (&heads)[Unit::kTwos], int member)
      : steps_(shares.steps + first * kDim + member * kItems),
        sizes_(shares.sizes + ((first * kDim + member * kItems) >> part_shift_of(shares))),
        group_(group),
        parts_shift_(kDimShift - part_shift_of(shares)),
        heads_(heads) {}

  /// Adds the shares of `count` places, of which each lane has one.
  __device__ __forceinline__ void add(int count, int place, Sums& sums) {
#pragma unroll 1
    for (int first = 0; first < count; first += Unit::kAtOnce) {
      std::uint32_t pairs[Unit::kAtOnce][Unit::kTwos][kItems / 2];
      float sizes[Unit::kAtOnce][Unit::kTwos];
      bool odd = false;
#pragma unroll
      for (int i = 0; i < Unit::kAtOnce; ++i) {
        // Behind the last place that one again, but nothing of it.
        const int from = __shfl_sync(kAllLanes, place, min(first + i, count - 1));
#pragma unroll
        for (int two = 0; two < Unit::kTwos; ++two) {
          read(static_cast<unsigned>(from * group_ + heads_[two]), pairs[i][two], sizes[i][two]);
          if (first + i >= count) sizes[i][two] = 0.0f;
        }
      }
#pragma unroll
      for (int i = 0; i < Unit::kAtOnce; ++i) {
#pragma unroll
        for (int two = 0; two < Unit::kTwos; ++two) odd = odd || is_odd(sizes[i][two]);
      }
      if (warp::any(odd)) {
        add_read<true>(pairs, sizes, sums);
      } else {
        add_read<false>(pairs, sizes, sums);
      }
    }
  }

 private:
  static constexpr int kItems = Unit::kItems;
  static constexpr int kDim = kHeadLanes * kItems;
  static constexpr int kDimShift = kDim == 128 ? 7 : 6;

  /// Whether some numbers of a part with steps of this size are not finite.
  __device__ __forceinline__ static bool is_odd(float size) { return __float_as_int(size) < 0; }

  __device__ __forceinline__ void read(unsigned row, std::uint32_t (&pairs)[kItems / 2],
                                       float& size) const {
    size = sizes_[std::uint64_t{row} << parts_shift_];
    const std::uint16_t* from = steps_ + std::uint64_t{row} * kDim;
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

  template <bool kOdd>
  __device__ __forceinline__ static void add_read(
      const std::uint32_t (&pairs)[Unit::kAtOnce][Unit::kTwos][kItems / 2],
      const float (&sizes)[Unit::kAtOnce][Unit::kTwos], Sums& sums) {
#pragma unroll
    for (int at = 0; at < Unit::kAtOnce * Unit::kTwos; ++at) {
      const float size = sizes[at / Unit::kTwos][at % Unit::kTwos];
      float(&to)[kItems] = sums[at % Unit::kTwos];
#pragma unroll
      for (int i = 0; i < kItems; i += 2) {
        const std::uint32_t pair = pairs[at / Unit::kTwos][at % Unit::kTwos][i / 2];
        const float2 values = kOdd && is_odd(size) ? unpack_odd(pair) : unpack_steps(pair);
        to[i] = fmaf(values.x, fabsf(size), to[i]);
        to[i + 1] = fmaf(values.y, fabsf(size), to[i + 1]);
      }
    }
  }

  const std::uint16_t* steps_;
  const float* sizes_;
  const int group_;
  const int parts_shift_;
  const int (&heads_)[Unit::kTwos];
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

/// Calls visit(count, place of this lane) for the places of a row, as many as lanes at a time, each
/// of which has one. kFew: that is all of them.
template <bool kFew, class Visit>
__device__ __forceinline__ void for_each_batch_of_places(const Pairs& p,
                                                         const RequestRecord& request,
                                                         std::int64_t row, int head, int lane,
                                                         const Visit& visit) {
  int own = 0;
  int count = 0;
  for_each_place(p, request, row, head, lane, [&](int place) {
    if (!kFew && count == kFewPlaces) {
      visit(count, own);
      count = 0;
    }
    if (lane == count) own = place;
    ++count;
  });
  visit(count, own);
}

/// This lane's items of one head.
template <class Item, int kItems>
__device__ __forceinline__ void store_sums(const QueryParams& params, std::int64_t row, int head,
                                           bool attends, const float (&sums)[kItems]) {
  const int member = static_cast<int>(threadIdx.x % kHeadLanes);
  float scale = params.scale;
  // The weight of a row that attends to nothing may be anything, and so may its shares.
  if (attends && params.weights != nullptr) scale *= params.weights[row * params.stride_weights];
  const int part_shift = part_shift_of(params.shares);
#pragma unroll
  for (int i = 0; i < kItems; i += 2) {
    const int column = share_column(member * kItems + i, part_shift);
    const float lower = attends ? sums[i] * scale : 0.0f;
    const float upper = attends ? sums[i + 1] * scale : 0.0f;
    if (params.f32 != 0) {
      float* to = row_of<float>(params.dq, row, head) + column;
      to[0] = lower;
      to[1] = upper;
    } else {
      Item* to = row_of<Item>(params.dq, row, head) + column;
      if (reinterpret_cast<std::uintptr_t>(to) % sizeof(std::uint32_t) == 0) {
        *reinterpret_cast<std::uint32_t*>(to) = ptx::cvt_pack<Item>(lower, upper);
      } else {
        to[0] = Item(lower);
        to[1] = Item(upper);
      }
    }
  }
}

/// The heads of a unit of a row of the launch, two at a time, a half of the warp each; of an odd
/// number the upper lanes have nothing of the last.
template <class Item, class Unit>
__device__ __forceinline__ void add_up(const QueryParams& params, unsigned token, int unit) {
  const Pairs& p = params.pairs;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t row = p.row_begin + token;
  const int units = Unit::of_group(p.group);
  const int head_kv = unit / units;
  const int first = (unit - head_kv * units) * Unit::kHeads + lane / kHeadLanes;  // of the group
  const int request = owner_of(p.batch, p.requests, row);
  int heads[Unit::kTwos];  // of the group
  bool attends[Unit::kTwos];
  bool some = false;
#pragma unroll
  for (int two = 0; two < Unit::kTwos; ++two) {
    heads[two] = min(first + 2 * two, p.group - 1);
    attends[two] = request >= 0 && first + 2 * two < p.group &&
                   item_of(params.lse, row, head_kv * p.group + heads[two]) != kMinusInf;
    some = some || attends[two];
  }
  float sums[Unit::kTwos][Unit::kItems] = {};
  if (warp::any(some)) {
    ShareReader<Unit> shares(params.shares,
                             (std::int64_t{token} * p.heads_kv + head_kv) * p.places * p.group,
                             p.group, heads, static_cast<int>(threadIdx.x % kHeadLanes));
    for_each_batch_of_places<Unit::kFew>(
        p, p.requests[request], row, head_kv, lane,
        [&](int count, int place) { shares.add(count, place, sums); });
  }
#pragma unroll
  for (int two = 0; two < Unit::kTwos; ++two) {
    if (first + 2 * two >= p.group) break;
    const int head = head_kv * p.group + heads[two];
    if (attends[two]) note_row(params, row, head, sums[two]);
    store_sums<Item>(params, row, head, attends[two], sums[two]);
  }
}

template <class Item, class Unit>
__global__ void __launch_bounds__(kQueryWarps * 32, Unit::kCtasPerSm)
    queries_kernel(const __grid_constant__ QueryParams params) {
  if (params.wanted != nullptr && *params.wanted == 0) return;
  const Pairs& p = params.pairs;
  const unsigned units = p.heads_kv * Unit::of_group(p.group);              // of a token
  const auto end = static_cast<unsigned>(p.row_end - p.row_begin) * units;  // below 2^31
  for (unsigned unit = blockIdx.x * kQueryWarps + threadIdx.x / 32; unit < end;
       unit += gridDim.x * kQueryWarps)
    add_up<Item, Unit>(params, unit / units, static_cast<int>(unit % units));
}

template <class Unit>
void launch_units(const QueryParams& params, cudaStream_t stream) {
  const Pairs& p = params.pairs;
  const std::int64_t warps = (p.row_end - p.row_begin) * p.heads_kv * Unit::of_group(p.group);
  const std::int64_t ctas = std::min(ceil_div(warps, kQueryWarps), kMaxQueryCtas);
  launch_kernel(queries_kernel<ItemOf<Storage::Bf16>, Unit>,
                {.grid = dim3(static_cast<unsigned>(ctas)),
                 .block = dim3(kQueryWarps * 32),
                 .stream = stream},
                params);
}

template <int kDim>
void launch_rows(const QueryParams& params, cudaStream_t stream) {
  if (params.pairs.places > kFewPlaces) return launch_units<UnitOf<kDim, false, 1>>(params, stream);
  if (params.pairs.group <= 2) return launch_units<UnitOf<kDim, true, 1>>(params, stream);
  launch_units<UnitOf<kDim, true, 2>>(params, stream);
}

}  // namespace

void launch_queries(const QueryParams& params, cudaStream_t stream) {
  if (params.head_dim == 128) {
    launch_rows<128>(params, stream);
  } else {
    launch_rows<64>(params, stream);
  }
}

}  // namespace msa::cuda::common::backward
