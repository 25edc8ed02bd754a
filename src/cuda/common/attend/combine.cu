// SPDX-License-Identifier: MIT
// One warp a (query row, head).
#include "cuda/common/attend/combine.h"
#include "cuda/common/join_by_lse.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/launch.h"
#include "msa/error.h"

namespace msa::cuda::common::attend {
namespace {

constexpr int kWarps = 8;

__device__ __forceinline__ void store(float* to, float x) { *to = x; }
__device__ __forceinline__ void store(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void store(__half* to, float x) { *to = __float2half_rn(x); }

template <class Out>
__global__ void __launch_bounds__(kWarps * 32)
    kernel(const __grid_constant__ CombineParams params) {
  const int lane = threadIdx.x & 31;
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= params.rows) return;
  float o[4] = {};  // columns lane, lane + 32, ...
  const auto state_of = [&](int split) {
    return RowState{params.part_lse[split * params.rows + row], 1.0f};
  };
  const RowState whole =
      join_by_lse<4>(params.splits, kLog2e, state_of, [&](int split, float weight) {
        if (weight == 0.0f) return;
        const float* part = params.part_out + (split * params.rows + row) * params.head_dim;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          if (lane + 32 * c < params.head_dim) o[c] = fmaf(weight, part[lane + 32 * c], o[c]);
        }
      });
  const std::int64_t token = row / params.heads;
  const std::int64_t head = row - token * params.heads;
  const float inverse = inverse_of(whole.sum);
  Out* out = row_of<Out>(params.to.out, token, head);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (lane + 32 * c < params.head_dim) store(out + lane + 32 * c, o[c] * inverse);
  }
  if (params.to.lse.data != nullptr && lane == 0)
    item_of(params.to.lse, token, head) = lse_of(whole.top, whole.sum);
}

}  // namespace

void launch_combine(const CombineParams& params, cudaStream_t stream) {
  const LaunchConfig config{
      .grid = dim3(static_cast<unsigned>((params.rows + kWarps - 1) / kWarps)),
      .block = dim3(kWarps * 32),
      .stream = stream};
  switch (params.to.f32 != 0 ? Storage::F32 : params.storage) {
    case Storage::F32:
      return launch_kernel(kernel<ItemOf<Storage::F32>>, config, params);
    case Storage::Bf16:
      return launch_kernel(kernel<ItemOf<Storage::Bf16>>, config, params);
    case Storage::F16:
      return launch_kernel(kernel<ItemOf<Storage::F16>>, config, params);
    case Storage::E4m3:
      throw Error(ErrorCode::Internal, "", "cuda attend: planned for outputs of e4m3");
  }
}

}  // namespace msa::cuda::common::attend
