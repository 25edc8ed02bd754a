// SPDX-License-Identifier: MIT
// The attention kernel, dense and over unions of block lists: a CTA a work item, heaviest first;
// all of its warps copy, and each works on its own rows. See docs/kernels/mma-attend.md.
#pragma once

#include "cuda/launch.h"
#include "cuda/mma/attend/consumer.cuh"
#include "cuda/mma/attend/epilogue.cuh"
#include "cuda/mma/attend/launch.h"
#include "cuda/mma/attend/loader.cuh"

namespace msa::cuda::mma::attend {

/// visit.template operator()<kActive>() for the bits of `active`, none among them.
template <int kTiles, class Visit>
__device__ __forceinline__ void with_active(unsigned active, const Visit& visit) {
  constexpr unsigned kAll = (1u << kTiles) - 1;
  if (active == kAll) {
    visit.template operator()<kAll>();
  } else if (active == 0) {
    visit.template operator()<0>();
  } else if constexpr (kTiles == 2) {
    if (active == 1) {
      visit.template operator()<1>();
    } else {
      visit.template operator()<2>();
    }
  }
}

inline constexpr int kBarrierStage = 1;  // warps reach it on different ways; 0 is __syncthreads

/// Small groups have more than 32 tokens' worth of rows: no shift by 32 or more.
__device__ __forceinline__ std::uint32_t bits_below(int n) { return n >= 32 ? ~0u : (1u << n) - 1; }

/// The job, and what each row of the tile sees. All threads.
template <class Traits>
__device__ __forceinline__ void describe_tile(const common::attend::Params& params,
                                              const common::attend::Place& place,
                                              typename Traits::Shared& shared) {
  if (threadIdx.x == 0) {
    shared.job = common::attend::describe<Traits::kConfig.walk, kStepKeys>(params, place);
    if (Traits::kKeyScales)
      shared.folded = {};
    else
      shared.folded = common::fold_scales(params.k_scales, params.v_scales, 0, place.head);
    shared.suspect = shared.folded.odd;
  }
  __syncthreads();
  const Job& job = shared.job;
  for (int row = static_cast<int>(threadIdx.x); row < kTileRows; row += Traits::kThreads) {
    const int token = row / params.group;
    shared.token[row] = static_cast<std::uint8_t>(min(token, 31));
    shared.visible[row] = min(max(job.base + token, 0), job.limit);
    if (row % 16 == 0)
      shared.tokens[row / 16] = bits_below((row + 15) / params.group + 1) & ~bits_below(token);
  }
  __syncthreads();
}

template <class Traits>
__device__ __forceinline__ void load_keys(const Params& params, const Loader<Traits>& loader,
                                          typename Traits::Shared& shared, int step,
                                          std::uint8_t* stage) {
  loader.load(params.k, step, stage);
  if constexpr (Traits::kKeyScales)
    loader.load_scales(params.tiles.k_scales, step, shared.k_scales[step % 2]);
}
template <class Traits>
__device__ __forceinline__ void load_values(const Params& params, const Loader<Traits>& loader,
                                            typename Traits::Shared& shared, int step,
                                            std::uint8_t* stage) {
  loader.load(params.v, step, stage);
  if constexpr (Traits::kKeyScales)
    loader.load_scales(params.tiles.v_scales, step, shared.v_scales[step % 2]);
}

/// What was loaded is there, but for the last `kPending` groups, and everybody is done with what
/// was read before.
template <class Traits, int kPending>
__device__ __forceinline__ void turn() {
  ptx::cp_async_wait_group<kPending>();
  ptx::bar_sync(kBarrierStage, Traits::kThreads);
}

template <class Traits>
__device__ __forceinline__ std::uint32_t tokens_of(const typename Traits::Shared& shared,
                                                   int step) {
  return Traits::kUnion ? shared.entries[step % kAhead].tokens : 0;
}

/// Four stages: those of the next step are loaded while this one's are read.
template <class Traits>
__device__ __forceinline__ void walk_whole(const Params& params, const Loader<Traits>& loader,
                                           Consumer<Traits>& consumer,
                                           typename Traits::Shared& shared, float scale_log2) {
  ptx::cp_async_commit_group();
#pragma unroll 1
  for (int step = 0; step < loader.steps(); ++step) {
    turn<Traits, 0>();
    loader.look_ahead(step);
    if (step + 1 < loader.steps()) {
      const int next = step % 2 == 0 ? 2 : 0;
      load_keys(params, loader, shared, step + 1, shared.ring[next]);
      load_values(params, loader, shared, step + 1, shared.ring[next + 1]);
    }
    ptx::cp_async_commit_group();
    if constexpr (Traits::kKeyScales) {
      loader.check_scales(shared.k_scales[step % 2]);
      loader.check_scales(shared.v_scales[step % 2]);
    }
    const std::uint32_t tokens = tokens_of<Traits>(shared, step);
    with_active<Traits::kTiles>(consumer.active(tokens), [&]<unsigned kActive>() {
      if constexpr (kActive != 0) {
        const int at = step % 2 * 2;
        consumer.template score<kActive>(shared.ring[at], tokens, step, loader.first_key(step),
                                         scale_log2);
        consumer.template add_values<kActive>(shared.ring[at + 1], step, scale_log2);
      }
    });
  }
}

/// Three stages: keys and values alternate, and the stage of one is free for the next step's other.
template <class Traits>
__device__ __forceinline__ void walk_halves(const Params& params, const Loader<Traits>& loader,
                                            Consumer<Traits>& consumer,
                                            typename Traits::Shared& shared, float scale_log2) {
  ptx::cp_async_commit_group();
  int at = 0;  // of the stage to be read
  const auto next = [&] { at = at == 2 ? 0 : at + 1; };
  const auto before = [&] { return shared.ring[at == 0 ? 2 : at - 1]; };
#pragma unroll 1
  for (int step = 0; step < loader.steps(); ++step) {
    turn<Traits, 1>();
    loader.look_ahead(step);
    if (step + 1 < loader.steps()) load_keys(params, loader, shared, step + 1, before());
    ptx::cp_async_commit_group();
    const std::uint32_t tokens = tokens_of<Traits>(shared, step);
    // Weights stay in registers over the turn to the values: each kind of step has its own.
    with_active<Traits::kTiles>(consumer.active(tokens), [&]<unsigned kActive>() {
      if constexpr (kActive != 0)
        consumer.template score<kActive>(shared.ring[at], tokens, step, loader.first_key(step),
                                         scale_log2);
      next();
      turn<Traits, 1>();
      if (step + 1 < loader.steps()) load_values(params, loader, shared, step + 1, before());
      ptx::cp_async_commit_group();
      if constexpr (kActive != 0)
        consumer.template add_values<kActive>(shared.ring[at], step, scale_log2);
      next();
    });
  }
}

/// The steps of a tile, each loaded one step ahead.
template <class Traits>
__device__ __forceinline__ void walk(const Params& params, const Loader<Traits>& loader,
                                     Consumer<Traits>& consumer, typename Traits::Shared& shared) {
  if (loader.steps() == 0) return;
  const float scale_log2 = shared.folded.scores(params.tiles.scale_log2);
  loader.begin();
  loader.load_queries();
  load_keys(params, loader, shared, 0, shared.ring[0]);
  if (Traits::kStages == 3) ptx::cp_async_commit_group();
  load_values(params, loader, shared, 0, shared.ring[1]);
  if constexpr (Traits::kStages == 4) {
    walk_whole(params, loader, consumer, shared, scale_log2);
  } else {
    walk_halves(params, loader, consumer, shared, scale_log2);
  }
  __syncthreads();  // marks are there
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kCtasPerSm)
    kernel(const __grid_constant__ Params params) {
  extern __shared__ __align__(128) std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(raw);
  if constexpr (!Traits::kIsCompiled) return;
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const common::attend::Params& tiles = params.tiles;
  const int count = common::attend::launch_tiles(tiles);
  const int item = static_cast<int>(blockIdx.x);
  if (item >= count * tiles.heads_kv * tiles.splits) return;
  describe_tile<Traits>(tiles, common::attend::place_of(tiles, item, count), shared);
  const Loader<Traits> loader(params, shared);
  Consumer<Traits> consumer(shared);
  walk(params, loader, consumer, shared);
#pragma unroll
  for (int t = 0; t < Traits::kTiles; ++t) {
    const Epilogue<Traits> epilogue{tiles, shared.job, shared.folded,
                                    static_cast<int>(threadIdx.x) / 32 * Traits::kWarpRows + 16 * t,
                                    static_cast<int>(threadIdx.x) % 32};
    epilogue.store(consumer.o_[t], consumer.softmax_[t], shared.q, shared.suspect != 0);
  }
}

template <Config cfg>
void launch_instance(const Params& params, cudaStream_t stream) {
  using Chosen = Traits<cfg>;
  const common::attend::Params& tiles = params.tiles;
  launch_kernel(kernel<Chosen>,
                {.grid = dim3(static_cast<unsigned>(tiles.tile_limit) *
                              static_cast<unsigned>(tiles.heads_kv * tiles.splits)),
                 .block = dim3(Chosen::kThreads),
                 .shared_bytes = Chosen::kSharedBytes,
                 .programmatic = true,
                 .stream = stream},
                params);
}

}  // namespace msa::cuda::mma::attend
