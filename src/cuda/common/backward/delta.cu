// SPDX-License-Identifier: MIT
// A warp a (row, head).
#include "cuda/common/backward/launch.h"
#include "cuda/common/number.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/geometry.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::backward {
namespace {

constexpr int kDeltaWarps = 8;

template <class Item>
__global__ void __launch_bounds__(kDeltaWarps * 32)
    delta_kernel(const __grid_constant__ DeltaParams p) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const unsigned pair = blockIdx.x * kDeltaWarps + threadIdx.x / 32;  // below 2^31
  const unsigned row = pair / static_cast<unsigned>(p.heads);
  if (row >= p.rows) return;
  const unsigned head = pair - row * static_cast<unsigned>(p.heads);
  const Item* out = row_of<Item>(p.out, row, head);
  const Item* dout = row_of<Item>(p.dout, row, head);
  float sum = 0.0f;
  for (int d = 2 * lane; d < p.head_dim; d += 64) {
    sum = fmaf(to_float(dout[d]), to_float(out[d]), sum);
    sum = fmaf(to_float(dout[d + 1]), to_float(out[d + 1]), sum);
  }
  sum = warp::sum(sum);
  if (lane != 0) return;
  if (p.dlse.data != nullptr) sum -= item_of(p.dlse, row, head);
  p.delta[pair] = sum;
}

}  // namespace

void launch_delta(Storage storage, const DeltaParams& p, cudaStream_t stream) {
  const LaunchConfig config{
      .grid = dim3(static_cast<unsigned>(ceil_div(p.rows * p.heads, kDeltaWarps))),
      .block = dim3(kDeltaWarps * 32),
      .stream = stream};
  with_item(storage, [&]<class Item>() { launch_kernel(delta_kernel<Item>, config, p); });
}

}  // namespace msa::cuda::common::backward
