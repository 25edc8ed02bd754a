// SPDX-License-Identifier: MIT
// A half or a quarter of a warp a (row, head), eight items a lane; several of them one after the
// other, all of whose items are on their way at once.
#include "cuda/common/backward/launch.h"
#include "cuda/common/number.cuh"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/geometry.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::backward {
namespace {

constexpr int kDeltaWarps = 8;
constexpr int kDeltaItems = 8;  // of a lane
constexpr int kDeltaPairs = 4;  // of a lane, one after the other

template <class Item>
__device__ __forceinline__ uint4 read_items(const Rows<const void>& rows, unsigned row,
                                            unsigned head, unsigned member) {
  return *reinterpret_cast<const uint4*>(row_of<Item>(rows, row, head) + member * kDeltaItems);
}

template <class Item>
__device__ __forceinline__ void add_product(std::uint32_t x, std::uint32_t y, float& sum) {
  const float2 xs = ptx::cvt_unpack<Item>(x);
  const float2 ys = ptx::cvt_unpack<Item>(y);
  sum = fmaf(xs.x, ys.x, sum);
  sum = fmaf(xs.y, ys.y, sum);
}

template <class Item>
__global__ void __launch_bounds__(kDeltaWarps * 32)
    delta_kernel(const __grid_constant__ DeltaParams p) {
  const unsigned lanes = static_cast<unsigned>(p.head_dim / kDeltaItems);  // of a pair
  const unsigned threads = kDeltaWarps * 32;
  const unsigned heads = static_cast<unsigned>(p.heads);
  const auto pairs = static_cast<unsigned>(p.rows) * heads;  // below 2^31
  const unsigned member = threadIdx.x % lanes;
  const unsigned first = blockIdx.x * (threads / lanes) * kDeltaPairs + threadIdx.x / lanes;
  uint4 out[kDeltaPairs]{};
  uint4 dout[kDeltaPairs]{};
#pragma unroll
  for (int i = 0; i < kDeltaPairs; ++i) {
    const unsigned pair = first + i * (threads / lanes);
    if (pair >= pairs) break;
    const unsigned row = pair / heads;
    const unsigned head = pair - row * heads;
    out[i] = read_items<Item>(p.out, row, head, member);
    dout[i] = read_items<Item>(p.dout, row, head, member);
  }
#pragma unroll
  for (int i = 0; i < kDeltaPairs; ++i) {
    const unsigned pair = first + i * (threads / lanes);
    float sum = 0.0f;
    add_product<Item>(dout[i].x, out[i].x, sum);
    add_product<Item>(dout[i].y, out[i].y, sum);
    add_product<Item>(dout[i].z, out[i].z, sum);
    add_product<Item>(dout[i].w, out[i].w, sum);
    for (unsigned step = lanes / 2; step > 0; step /= 2)
      sum += __shfl_xor_sync(kAllLanes, sum, static_cast<int>(step));
    if (member != 0 || pair >= pairs) continue;
    if (p.dlse.data != nullptr) sum -= item_of(p.dlse, pair / heads, pair % heads);
    p.delta[pair] = sum;
  }
}

}  // namespace

void launch_delta(const DeltaParams& p, cudaStream_t stream) {
  const std::int64_t pairs = kDeltaWarps * 32 * kDeltaItems / p.head_dim * kDeltaPairs;
  const LaunchConfig config{.grid = dim3(static_cast<unsigned>(ceil_div(p.rows * p.heads, pairs))),
                            .block = dim3(kDeltaWarps * 32),
                            .stream = stream};
  launch_kernel(delta_kernel<ItemOf<Storage::Bf16>>, config, p);
}

}  // namespace msa::cuda::common::backward
