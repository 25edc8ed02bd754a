// SPDX-License-Identifier: MIT
// A warp a (row, query head): the shares of the blocks that the row attends to, in the order of its
// list, become dq. Who attends to nothing has zeros.
#include "cuda/common/backward/launch.h"
#include "cuda/common/backward/places.cuh"
#include "cuda/common/backward/shares.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/steps.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::backward {
namespace {

constexpr int kQueryWarps = 8;

/// kItems neighbouring items of a share's row, in its order.
template <int kItems>
struct ShareReader {
  const Shares& shares;
  int group;
  int head;  // in its group
  int lane;

  __device__ __forceinline__ void add(std::int64_t slot, float (&sums)[kItems]) const {
    constexpr int kDim = 32 * kItems;
    const std::int64_t row = slot * group + head;
    const int part = lane * kItems / shares.part_dims;
    const float size = shares.sizes[row * (kDim / shares.part_dims) + part];
    const bool odd = (__float_as_uint(size) >> 31) != 0;
    const auto* from =
        reinterpret_cast<const std::uint32_t*>(shares.steps + row * kDim + lane * kItems);
#pragma unroll
    for (int i = 0; i < kItems; i += 2) {
      const float2 pair = odd ? unpack_odd(from[i / 2]) : unpack_steps(from[i / 2]);
      sums[i] = fmaf(pair.x, fabsf(size), sums[i]);
      sums[i + 1] = fmaf(pair.y, fabsf(size), sums[i + 1]);
    }
  }
};

template <class Item, int kItems>
__global__ void __launch_bounds__(kQueryWarps * 32)
    queries_kernel(const __grid_constant__ QueryParams params) {
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
    const ShareReader<kItems> shares{params.shares, p.group, head - head_kv * p.group, lane};
    const std::int64_t first = (std::int64_t{token} * p.heads_kv + head_kv) * p.places;
    for_each_place(p, p.requests[request], row, head_kv, lane,
                   [&](int place) { shares.add(first + place, sums); });
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
