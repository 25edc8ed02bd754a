// SPDX-License-Identifier: MIT
// One warp a (query row, head), as merge_states, with the same bits: what it gives in f32, rounded
// to the type of the output. Columns of the first ranks are asked for together with all lses.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/common/merge_states/row.cuh"
#include "cuda/common/peers/launch.h"
#include "cuda/common/peers/meet.cuh"
#include "cuda/launch.h"
#include "msa/error.h"

namespace msa::cuda::common::peers {
namespace {

using merge_states::Columns;
using merge_states::kVector;
using merge_states::kWarps;

constexpr int kRanksAhead = 4;  // whose columns are asked for before they are weighed

static_assert(kMaxRanks <= kWarps * 32, "a thread for each rank");
static_assert(sizeof(JoinParams) <= 4096, "parameters of a kernel on every driver");

template <class Out, int kCount>
__global__ void __launch_bounds__(kWarps * 32)
    join_kernel(const __grid_constant__ JoinParams params) {
  meet(params.meeting);
  const merge_states::Params& p = params.states;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= p.rows) return;
  const std::int64_t token = static_cast<int>(row) / p.heads;
  const std::int64_t head = row - token * p.heads;
  Columns<float, kCount> ahead[kRanksAhead]{};
#pragma unroll
  for (int n = 0; n < kRanksAhead; ++n) {
    if (n < p.num_parts && lane * kCount < p.dim)
      ahead[n] = merge_states::load_columns<float, kCount>(p, n, token, head, lane * kCount);
  }
  const auto w = merge_states::weigh<double>(p, token, head, lane);
  Out* const out = row_of<Out>(p.out, token, head);
  for (std::int64_t first = 0; first < p.dim; first += 32 * kCount) {
    const std::int64_t column = first + lane * kCount;
    const bool inside = column < p.dim;
    double sums[kCount] = {};
    if (first == 0) {
#pragma unroll
      for (int n = 0; n < kRanksAhead; ++n) {
        if (n >= p.num_parts) break;
        const double weight = __shfl_sync(kAllLanes, w.of[0], n);
        const bool live = (w.live[0] >> n & 1) != 0;
#pragma unroll
        for (int c = 0; c < kCount; ++c)
          sums[c] += weight * static_cast<double>(live ? ahead[n].x[c] : 0.0f);
      }
    }
    merge_states::add_parts<float>(p, w, token, head, column, inside, sums,
                                   first == 0 ? min(kRanksAhead, p.num_parts) : 0);
    if (inside) merge_states::store(out + column, sums);
  }
  if (p.lse.data != nullptr && lane == 0) item_of(p.lse, token, head) = w.lse;
}

template <class Out>
void launch_items(const JoinParams& params, cudaStream_t stream) {
  const merge_states::Params& p = params.states;
  bool vectors = p.dim % kVector == 0 && merge_states::takes_vectors<Out>(p.out);
  for (int n = 0; n < p.num_parts; ++n)
    vectors = vectors && merge_states::takes_vectors<float>(p.parts[n].out);
  const LaunchConfig config{.grid = dim3(static_cast<unsigned>((p.rows + kWarps - 1) / kWarps)),
                            .block = dim3(kWarps * 32),
                            .programmatic = true,
                            .stream = stream};
  if (vectors) {
    launch_kernel(join_kernel<Out, kVector>, config, params);
  } else {
    launch_kernel(join_kernel<Out, 1>, config, params);
  }
}

}  // namespace

void launch_join(const JoinParams& params, cudaStream_t stream) {
  switch (params.states.out_storage) {
    case Storage::F32:
      return launch_items<float>(params, stream);
    case Storage::F16:
      return launch_items<__half>(params, stream);
    case Storage::Bf16:
      return launch_items<__nv_bfloat16>(params, stream);
    default:
      throw Error(ErrorCode::Internal, "", "cuda peers: an output of no float");
  }
}

}  // namespace msa::cuda::common::peers
