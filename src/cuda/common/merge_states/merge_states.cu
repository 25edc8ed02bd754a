// SPDX-License-Identifier: MIT
// One warp a (query row, head): the lanes weigh the parts, a lane a part, then share the columns.
// See docs/kernels/merge.md.
#include <type_traits>

#include "cuda/common/merge_states/launch.h"
#include "cuda/common/merge_states/row.cuh"
#include "cuda/launch.h"
#include "msa/error.h"

namespace msa::cuda::common::merge_states {
namespace {

/// Sums are fp64 where the result is f32: 64 parts in fp32 drift by several ulp of it, and memory
/// is the bound anyway. Columns are read whole before they are written: the output may be a part.
template <class In, class Out, int kCount>
__global__ void __launch_bounds__(kWarps * 32) kernel(const __grid_constant__ Params p) {
  using Sum = std::conditional_t<std::is_same_v<Out, float>, double, float>;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= p.rows) return;
  const std::int64_t token = static_cast<int>(row) / p.heads;
  const std::int64_t head = row - token * p.heads;
  const Weights<Sum> w = weigh<Sum>(p, token, head, lane);
  Out* const out = row_of<Out>(p.out, token, head);
  for (std::int64_t first = 0; first < p.dim; first += 32 * kCount) {
    const std::int64_t column = first + lane * kCount;
    const bool inside = column < p.dim;
    Sum sums[kCount] = {};
    add_parts<In>(p, w, token, head, column, inside, sums);
    if (inside) store(out + column, sums);
  }
  if (p.lse.data != nullptr && lane == 0) item_of(p.lse, token, head) = w.lse;
}

template <class In, class Out>
void launch_items(const Params& p, cudaStream_t stream) {
  bool vectors = p.dim % kVector == 0 && takes_vectors<Out>(p.out);
  for (int n = 0; n < p.num_parts; ++n) {
    vectors = vectors && takes_vectors<In>(p.parts[n].out);
  }
  const LaunchConfig config{.grid = dim3(static_cast<unsigned>((p.rows + kWarps - 1) / kWarps)),
                            .block = dim3(kWarps * 32),
                            .stream = stream};
  if (vectors) {
    launch_kernel(kernel<In, Out, kVector>, config, p);
  } else {
    launch_kernel(kernel<In, Out, 1>, config, p);
  }
}

}  // namespace

void launch(const Params& p, cudaStream_t stream) {
  const bool wide = p.out_storage == Storage::F32;
  switch (p.storage) {
    case Storage::F32:
      return launch_items<float, float>(p, stream);
    case Storage::F16:
      return wide ? launch_items<__half, float>(p, stream)
                  : launch_items<__half, __half>(p, stream);
    case Storage::Bf16:
      return wide ? launch_items<__nv_bfloat16, float>(p, stream)
                  : launch_items<__nv_bfloat16, __nv_bfloat16>(p, stream);
    case Storage::E4m3:
      throw Error(ErrorCode::Internal, "", "cuda merge: planned for parts of e4m3");
  }
}

}  // namespace msa::cuda::common::merge_states
