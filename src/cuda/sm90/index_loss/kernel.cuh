// SPDX-License-Identifier: MIT
// The teacher of the index loss by wgmma: a CTA's four warps are a warpgroup, whose accumulator has
// the order of mma.sync, so that all else is mma/index_loss. Scores of hidden keys are made, too:
// they touch no others. See docs/kernels/backward.md.
#pragma once

#include "cuda/launch.h"
#include "cuda/mma/index_loss/kernel.cuh"
#include "cuda/sm90/index_loss/launch.h"
#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/tile/product.cuh"

namespace msa::cuda::sm90::index_loss {

/// In place of mma::index_loss::TeacherScores.
template <class Traits>
struct TeacherScores {
  static constexpr int kRows = mma::index_loss::kTurnRows;
  static_assert(Traits::kKeys == 64 && kRows == 64, "one warpgroup, an accumulator of n64");

  __device__ __forceinline__ static void publish() { ptx::fence_proxy_async_shared(); }

  __device__ __forceinline__ static void multiply(const typename Traits::Shared& shared, int stage,
                                                  int, int, float (&scores)[kRows / 2]) {
    ptx::wgmma_fence();
    multiply_rows<typename Traits::Item, Traits::kHeadDim, Traits::kKeys * kPanelRowBytes,
                  kRows * kPanelRowBytes>(scores, shared.k, shared.q[stage]);
    ptx::wgmma_wait_group<0>();
    ptx::keep_accumulator(scores);
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kCtasPerSm)
    kernel(const __grid_constant__ Params params) {
  extern __shared__ std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(align_shared<kSwizzleAtomBytes>(raw));
  mma::index_loss::work<Traits, TeacherScores<Traits>>(params, shared);
}

template <Config cfg>
void launch_instance(const Params& params, int ctas, cudaStream_t stream) {
  using Traits = mma::index_loss::Traits<cfg>;
  launch_kernel(kernel<Traits>,
                {.grid = dim3(static_cast<unsigned>(ctas)),
                 .block = dim3(Traits::kThreads),
                 .shared_bytes = Traits::kSharedBytes + kSwizzleAtomBytes,
                 .stream = stream},
                params);
}

}  // namespace msa::cuda::sm90::index_loss
