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
#include "cuda/sm90/tile/descriptor.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace msa::cuda::sm90::index_loss {

/// In place of mma::index_loss::TeacherScores.
template <class Traits>
struct TeacherScores {
  static constexpr int kRows = mma::index_loss::kTurnRows;
  static_assert(Traits::kKeys == 64 && kRows == 64, "one warpgroup, an accumulator of n64");

  __device__ __forceinline__ static void publish() { ptx::fence_proxy_async_shared(); }

  __device__ __forceinline__ static void multiply(const typename Traits::Shared& shared, int stage,
                                                  int, int, float (&scores)[kRows / 2]) {
    const std::uint64_t a = descriptor_k_major(shared.k);
    const std::uint64_t b = descriptor_k_major(shared.q[stage]);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < Traits::kHeadDim / 16; ++k) {
      const std::uint64_t inside = (k & 3) * kDescriptorStepK;
      const int panel = k >> 2;
      ptx::wgmma_ss<typename Traits::Item, ptx::Major::K>(
          scores, a + panel * (Traits::kKeys * kPanelRowBytes >> 4) + inside,
          b + panel * (kRows * kPanelRowBytes >> 4) + inside, k != 0);
    }
    ptx::wgmma_commit_group();
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
