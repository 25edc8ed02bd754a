// SPDX-License-Identifier: MIT
// The backward kernel: keys outermost. CTAs take work items, a tile of keys and tokens that attend
// to it, until none is left; all warps copy, and each works on its own keys. See
// docs/kernels/backward.md.
#pragma once

#include "cuda/common/backward/key_rows.cuh"
#include "cuda/launch.h"
#include "cuda/mma/backward/consumer.cuh"
#include "cuda/mma/backward/launch.h"
#include "cuda/mma/backward/loader.cuh"
#include "cuda/mma/backward/queries.cuh"
#include "cuda/mma/tile/take_item.cuh"

namespace msa::cuda::mma::backward {

template <class Traits, bool kMasked>
__device__ __forceinline__ void work_step(const Params& params,
                                          const typename Traits::RowInfo& rows, int stage,
                                          Consumer<Traits>& consumer,
                                          typename Traits::Shared& shared) {
  const bool queries = Traits::kQueries && params.shares.steps != nullptr;
  const bool keys = params.dk.rows.data != nullptr;
#pragma unroll
  for (int begin = 0; begin < Traits::kRows; begin += Traits::kWeighedRows) {
    consumer.template weigh<kMasked>(rows, stage, begin, params.scale_log2,
                                     params.dv.rows.data != nullptr);
    if (keys || queries) consumer.template derive<kMasked>(rows, stage, begin, keys, queries);
  }
  if constexpr (Traits::kQueries) {
    if (!queries) return;
    Traits::sync();  // dS is there
    QueryShare<Traits>(shared).template run<kMasked>(rows, params.shares);
  }
}

/// The tile, and the rows of the first step, which are on their way.
template <class Traits>
__device__ __forceinline__ void begin_walk(const Params& params, const Loader<Traits>& loader) {
  loader.load_keys();
  for (int step = 0; step < kRowInfos - 1; ++step) loader.find(step);
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  for (int step = 0; step < kRowInfos - 2; ++step) loader.tell(step);
  __syncthreads();
  if (params.shares.steps != nullptr) loader.average();
  loader.load(0);
  ptx::cp_async_commit_group();
}

/// What comes behind a step whose rows have arrived.
template <class Traits>
__device__ __forceinline__ void load_ahead(const Loader<Traits>& loader, int step) {
  if (step + 1 < loader.steps()) loader.load(step + 1);
  loader.find(step + 3);
  ptx::cp_async_commit_group();
  loader.tell(step + 2);
}

template <class Traits>
__device__ __forceinline__ void walk(const Params& params, const Loader<Traits>& loader,
                                     Consumer<Traits>& consumer, typename Traits::Shared& shared) {
  begin_walk(params, loader);
#pragma unroll 1
  for (int step = 0; step < loader.steps(); ++step) {
    ptx::cp_async_wait_group<0>();
    // The rows of a step ascend: if the first one sees all keys, all do, but for the blind.
    const bool blind = __syncthreads_or(loader.is_blind(step)) != 0;
    load_ahead(loader, step);
    if (blind || loader.info(step).limit[0] < Traits::kKeys) {
      work_step<Traits, true>(params, loader.info(step), step % 2, consumer, shared);
    } else {
      work_step<Traits, false>(params, loader.info(step), step % 2, consumer, shared);
    }
  }
}

/// The item's sums of dk, or of dv, as vectors of 16 keys and 8 columns a warp.
template <class Traits>
__device__ __forceinline__ void store_sums(const Params& params,
                                           const typename Traits::Shared& shared, int output,
                                           const common::backward::KeyRowsOut& to,
                                           const float (&sums)[Traits::kHeadDim / 2], float scale) {
  if (to.rows.data == nullptr) return;
  using common::backward::VectorPlace;
  // As in Consumer: nothing of this waits in registers over an item's steps.
  const int warp = common::warp::number();
  const int lane = ptx::laneid();
  const int vectors = common::backward::tile_vectors(Traits::kKeys, Traits::kHeadDim);
  const common::backward::WorkItem& item = shared.item;
  float4* part =
      reinterpret_cast<float4*>(params.parts) + (std::int64_t{item.part} * 2 + output) * vectors;
  float4* whole = nullptr;
  if (params.sums.data != nullptr) {
    whole = common::backward::sums_of_tile(params.pairs, params.sums, item.head,
                                           {item.request, item.tile}, Traits::kHeadDim) +
            output * vectors;
  }
#pragma unroll
  for (int n = 0; n < Traits::kHeadDim / 8; ++n) {
    const int at = common::backward::vector_of(warp, n, lane, Traits::kHeadDim);
    const float4 own = make_float4(sums[4 * n] * scale, sums[4 * n + 1] * scale,
                                   sums[4 * n + 2] * scale, sums[4 * n + 3] * scale);
    if (item.part >= 0) {
      part[at] = own;
    } else if (whole != nullptr) {
      common::backward::add_to(whole[at], own);
    } else {
      common::backward::store_vector<typename Traits::Item>(
          to, shared.request, item.head, item.tile * Traits::kKeys,
          common::backward::place_of_vector(at, Traits::kHeadDim), own);
    }
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads) kernel(const __grid_constant__ Params params) {
  extern __shared__ __align__(128) std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(raw);
#pragma unroll 1
  while (cta::take_item(params.pairs, params.work, shared)) {
    const Loader<Traits> loader(params, shared);
    Consumer<Traits> consumer(shared);
    walk(params, loader, consumer, shared);
    store_sums<Traits>(params, shared, 0, params.dk, consumer.dk_, params.scale);
    store_sums<Traits>(params, shared, 1, params.dv, consumer.dv_, 1.0f);
  }
}

template <Config cfg>
void launch_instance(const Params& params, int ctas, cudaStream_t stream) {
  using Chosen = Traits<cfg>;
  launch_kernel(kernel<Chosen>,
                {.grid = dim3(static_cast<unsigned>(ctas)),
                 .block = dim3(Chosen::kThreads),
                 .shared_bytes = Chosen::kSharedBytes,
                 .stream = stream},
                params);
}

}  // namespace msa::cuda::mma::backward
