// SPDX-License-Identifier: MIT
// The kernels of the index loss: keys outermost, as in the backward pass. The first adds up what
// the student gives to a token's keys, the second makes teacher and student again and knows the
// whole. See docs/kernels/backward.md.
#pragma once

#include "cuda/common/backward/key_rows.cuh"
#include "cuda/launch.h"
#include "cuda/mma/index_loss/consumer.cuh"
#include "cuda/mma/index_loss/launch.h"
#include "cuda/mma/index_loss/loader.cuh"
#include "cuda/mma/tile/take_item.cuh"

namespace msa::cuda::mma::index_loss {

/// What the first steps need; loads() begins the first loads of a step.
template <class Traits, class Loads>
__device__ __forceinline__ void begin(const Loader<Traits>& loader, const Loads& loads) {
  for (int step = 0; step < kTokenInfos - 1; ++step) loader.find(step);
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  for (int step = 0; step < kTokenInfos - 2; ++step) loader.tell(step);
  __syncthreads();
  loads();
  ptx::cp_async_commit_group();
}

/// The shares of all warps become those of the step's tokens.
template <class Traits>
__device__ __forceinline__ void store_student(const Params& params,
                                              const typename Traits::TokenInfo& tokens,
                                              const typename Traits::Exchange& from) {
  const int token = static_cast<int>(threadIdx.x);
  if (token >= kTokens || tokens.slot[token] < 0) return;
  float top = common::kMinusInf;
  for (int w = 0; w < Traits::kWarps; ++w) top = fmaxf(top, from.of_warps[0][w][token]);
  const float base = top == common::kMinusInf ? 0.0f : top;
  float sum = 0.0f;
  for (int w = 0; w < Traits::kWarps; ++w)
    sum += from.of_warps[1][w][token] * ptx::ex2(from.of_warps[0][w][token] - base);
  params.student_shares[tokens.slot[token]] = {top, sum};
}

template <class Traits>
__device__ __forceinline__ void store_loss(const Params& params,
                                           const typename Traits::TokenInfo& tokens,
                                           const typename Traits::Exchange& from) {
  const int token = static_cast<int>(threadIdx.x);
  if (params.loss_shares == nullptr || token >= kTokens || tokens.slot[token] < 0) return;
  float sum = 0.0f;
  for (int w = 0; w < Traits::kWarps; ++w) sum += from.of_warps[0][w][token];
  params.loss_shares[tokens.slot[token]] = sum;
}

template <class Traits>
__device__ __forceinline__ void walk_student(const Params& params, const Loader<Traits>& loader,
                                             Consumer<Traits>& consumer,
                                             typename Traits::Shared& shared) {
  loader.load_keys(false);
  begin(loader, [&] { loader.load_tokens(0); });
#pragma unroll 1
  for (int step = 0; step < loader.steps(); ++step) {
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    if (step + 1 < loader.steps()) loader.load_tokens(step + 1);
    loader.find(step + 3);
    ptx::cp_async_commit_group();
    loader.tell(step + 2);
    consumer.score(loader.info(step), step % 2, params.index_scale_log2);
    consumer.sum_student();
    __syncthreads();
    store_student<Traits>(params, loader.info(step), shared.exchange);
  }
}

/// Behind the turns of a step.
template <bool kMasked, class Traits>
__device__ __forceinline__ void finish_step(const Params& params,
                                            const typename Traits::TokenInfo& tokens, int step,
                                            Consumer<Traits>& consumer,
                                            typename Traits::Shared& shared) {
  const bool queries = params.shares.steps != nullptr;
  consumer.add_keys(tokens, params.sums.data != nullptr, queries, params.weights != nullptr,
                    [&](const std::uint32_t(&e)[4]) {
                      consumer.template add_product<kMasked>(tokens, step % 2, e);
                    });
  __syncthreads();
  store_loss<Traits>(params, tokens, shared.exchange);
  if (queries) consumer.template share_queries<kMasked>(tokens, shared.exchange, params.shares);
}

template <class Traits>
__device__ __forceinline__ void walk(const Params& params, const Loader<Traits>& loader,
                                     Consumer<Traits>& consumer, typename Traits::Shared& shared) {
  loader.load_keys(true);
  begin(loader, [&] {
    loader.load_tokens(0);
    loader.load_turn(0, 0, 0);
  });
  const float per_head = 1.0f / static_cast<float>(params.group);
  int stage = 0;
#pragma unroll 1
  for (int step = 0; step < loader.steps(); ++step) {
    const auto& tokens = loader.info(step);
    bool blind = false;
#pragma unroll 1
    for (int turn = 0; turn < loader.turns(); ++turn, stage ^= 1) {
      ptx::cp_async_wait_group<0>();
      // Tokens of a step ascend: if the first one sees all keys, all do, but for the blind. Those
      // behind the last are zeros.
      blind = __syncthreads_or(turn == 0 ? loader.is_blind(step) : blind) != 0;
      if (turn + 1 < loader.turns()) {
        loader.load_turn(step, turn + 1, stage ^ 1);
      } else if (step + 1 < loader.steps()) {
        loader.load_tokens(step + 1);
        loader.load_turn(step + 1, 0, stage ^ 1);
      }
      if (turn == 0) loader.find(step + 3);
      ptx::cp_async_commit_group();
      if (turn == 0) {
        loader.tell(step + 2);
        consumer.score(tokens, step % 2, params.index_scale_log2);
      }
      consumer.teach(stage, turn * loader.turn_tokens(), loader.token_rows(), params.scale_log2);
    }
    consumer.derive(tokens, per_head);
    if (blind || tokens.limit[0] < Traits::kKeys) {
      finish_step<true>(params, tokens, step, consumer, shared);
    } else {
      finish_step<false>(params, tokens, step, consumer, shared);
    }
  }
}

/// The item's sums of d_index_k.
template <class Traits>
__device__ __forceinline__ void store_sums(const Params& params, const Consumer<Traits>& consumer,
                                           const typename Traits::Shared& shared) {
  if (params.sums.data == nullptr) return;
  constexpr int kDim = Traits::kIndexDim;
  const common::backward::WorkItem& item = shared.item;
  float4* whole = common::backward::sums_of_tile(params.pairs, params.sums, item.head,
                                                 {item.request, item.tile}, kDim);
  float4* part = reinterpret_cast<float4*>(params.parts) +
                 std::int64_t{item.part} * common::backward::tile_vectors(Traits::kKeys, kDim);
#pragma unroll
  for (int n = 0; n < Traits::kOwnDims / 8; ++n) {
    const int at = consumer.vector_of(n);
    const float* sums = consumer.sums_ + 4 * n;
    const float scale = params.index_scale;
    const float4 own =
        make_float4(sums[0] * scale, sums[1] * scale, sums[2] * scale, sums[3] * scale);
    if (item.part >= 0) {
      part[at] = own;
    } else {
      common::backward::add_to(whole[at], own);
    }
  }
}

template <class Traits, bool kStudent>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kCtasPerSm)
    kernel(const __grid_constant__ Params params) {
  extern __shared__ __align__(128) std::uint8_t raw[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(raw);
#pragma unroll 1
  while (cta::take_item(params.pairs, params.work, shared)) {
    const Loader<Traits> loader(params, shared);
    Consumer<Traits> consumer(shared, shared.exchange, common::warp::number());
    if constexpr (kStudent) {
      walk_student(params, loader, consumer, shared);
    } else {
      walk(params, loader, consumer, shared);
      store_sums(params, consumer, shared);
    }
  }
}

template <Config cfg>
void launch_instance(const Params& params, int ctas, cudaStream_t stream) {
  using Chosen = Traits<cfg>;
  const LaunchConfig config{.grid = dim3(static_cast<unsigned>(ctas)),
                            .block = dim3(Chosen::kThreads),
                            .shared_bytes = Chosen::kSharedBytes,
                            .stream = stream};
  if (params.student_shares != nullptr) {
    launch_kernel(kernel<Chosen, true>, config, params);
  } else {
    launch_kernel(kernel<Chosen, false>, config, params);
  }
}

}  // namespace msa::cuda::mma::index_loss
