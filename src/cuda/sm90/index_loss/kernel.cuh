// SPDX-License-Identifier: MIT
// Hopper's kernels of the index loss, over the items of mma/index_loss: keys outermost. See
// docs/kernels/backward.md.
#pragma once

#include <type_traits>

#include "cuda/launch.h"
#include "cuda/sm90/index_loss/producer.cuh"
#include "cuda/sm90/index_loss/student.cuh"
#include "cuda/sm90/index_loss/teacher.cuh"
#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/ptx/copy.cuh"

namespace msa::cuda::sm90::index_loss {

/// The item's keys, which the first two warpgroups copy and all but the producers wait for.
class KeysOfItem {
 public:
  __device__ __forceinline__ KeysOfItem(const Params& params, Traits::Shared& shared)
      : params_(params), shared_(shared) {}

  __device__ __forceinline__ void load(bool teacher) {
    mma::index_loss::Loader<Traits>(params_, shared_).load_keys(teacher);
    ptx::cp_async_commit_group();
    ptx::cp_async_wait_group<0>();
    ptx::fence_proxy_async_shared();  // wgmma reads what this thread copied
    ptx::mbarrier_arrive(&shared_.keys_there);
    await();
  }
  __device__ __forceinline__ void await() {
    wait(&shared_.keys_there, parity_);
    parity_ ^= 1;
  }

 private:
  const Params& params_;
  Traits::Shared& shared_;
  std::uint32_t parity_ = 0;
};

/// The first two warpgroups: the teacher, or, in the first pass, the student's scores.
template <bool kStudent>
__device__ __forceinline__ void teach(const Params& params, Traits::Shared& shared) {
  KeysOfItem keys(params, shared);
  std::conditional_t<kStudent, ScoringStudent, Teacher> worker(params, shared);
#pragma unroll 1
  while (mma::cta::take_item(params.pairs, params.work, shared, shared.meeting)) {
    keys.load(!kStudent);
    worker.run();
  }
}

template <bool kStudent>
__device__ __forceinline__ void learn(const Params& params, Traits::Shared& shared) {
  KeysOfItem keys(params, shared);
  Student student(params, shared);
#pragma unroll 1
  while (mma::cta::await_item(params.work, shared, shared.meeting)) {
    if constexpr (!kStudent) {
      keys.await();
      student.run();
    }
  }
}

template <bool kStudent>
__device__ __forceinline__ void produce(const Params& params, const Maps& maps,
                                        Traits::Shared& shared) {
  const int warp =
      static_cast<int>(threadIdx.x - Traits::kThreads - Traits::kStudentThreads) / 32;
  if (warp < Traits::kSteps) {
    Finder finder(params, shared, warp);
#pragma unroll 1
    while (mma::cta::await_item(params.work, shared, shared.meeting)) finder.run<kStudent>();
  } else {
    Gatherer gatherer(params, maps, shared);
#pragma unroll 1
    while (mma::cta::await_item(params.work, shared, shared.meeting)) {
      if constexpr (!kStudent) gatherer.run();
    }
  }
}

template <class Traits, bool kStudent>
__global__ void __launch_bounds__(Traits::kCtaThreads, 1)
    kernel(const __grid_constant__ Params params, const __grid_constant__ Maps maps) {
  extern __shared__ std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(align_shared<kSwizzleAtomBytes>(raw));
  if (threadIdx.x == 0) {
    // Every lane arrives for itself, as in sm90/backward; the gatherer reads steps, too.
    shared.steps.init(Traits::kThreads + (kStudent ? 0 : Traits::kStudentThreads + 32), 32);
    shared.turns.init(Traits::kThreads);
    shared.taught.init(Traits::kStudentThreads, Traits::kThreads);
    shared.meeting.init(Traits::kCtaThreads);
    for (ptx::Mbarrier& told : shared.told) ptx::mbarrier_init(&told, Traits::kThreads);
    ptx::mbarrier_init(&shared.keys_there, Traits::kThreads);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= Traits::kThreads + Traits::kStudentThreads) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    produce<kStudent>(params, maps, shared);
  } else if (threadIdx.x >= Traits::kThreads) {
    ptx::setmaxnreg_inc<Traits::kStudentRegisters>();
    learn<kStudent>(params, shared);
  } else {
    ptx::setmaxnreg_inc<Traits::kTeacherRegisters>();
    teach<kStudent>(params, shared);
  }
}

template <Config cfg>
void launch_instance(const Params& params, const Maps& maps, int ctas, cudaStream_t stream) {
  static_assert(cfg == kTile, "the tile that Traits are of");
  const LaunchConfig config{.grid = dim3(static_cast<unsigned>(ctas)),
                            .block = dim3(Traits::kCtaThreads),
                            .shared_bytes = Traits::kSharedBytes,
                            .stream = stream};
  if (params.student_shares != nullptr) {
    launch_kernel(kernel<Traits, true>, config, params, maps);
  } else {
    launch_kernel(kernel<Traits, false>, config, params, maps);
  }
}

}  // namespace msa::cuda::sm90::index_loss
