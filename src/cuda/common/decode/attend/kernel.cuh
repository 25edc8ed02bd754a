// SPDX-License-Identifier: MIT
// Decode attention: one CTA takes a share of the blocks of one (query row, KV head, 16 query
// heads). Warp 4 streams blocks of K and V through a ring with the copy engine; warps 0 to 3 take a
// quarter of the keys of each block, with a softmax state of their own (mma.sync, heads on M), and
// join at the end, up to 8 splits as a cluster. With more the last CTA to arrive merges fp32
// partials in split order, so the bits never depend on who came last.
//
// Instructions that run once are fetched from memory, which takes longer than they do. A CTA that
// has to wait for scores anyway rehearses, which warms its instruction cache: it selects from a few
// items of its query, multiplies a block of codes and joins shares of zeros, a warp each, and
// writes nothing.
#pragma once

#include <algorithm>

#include "cuda/common/decode/attend/launch.h"
#include "cuda/common/decode/attend/row.cuh"
#include "cuda/common/decode/request.cuh"
#include "cuda/common/tile/align.cuh"
#include "cuda/common/tile/pipeline.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::decode {

/// Rows behind the last request (padding of CUDA graphs) see nothing. All CTAs share them, most of
/// all those whose token no request has: 500 rows took the last request's CTAs longer than its
/// work.
template <class Traits>
__device__ __forceinline__ void store_padding(const AttendParams& p, const Item& item,
                                              std::int64_t first, int thread) {
  const BatchParams& batch = p.select.batch;
  if (first == batch.total_q || thread >= Traits::kConsumers * 32) return;
  const int member = item.tile * 16 + thread / 8;
  const RowEighth<Traits> nothing{};
  for (std::int64_t row = first + blockIdx.z * gridDim.x + blockIdx.x; row < batch.total_q;
       row += gridDim.z * gridDim.x) {
    if (member < p.group) {
      store_row<Traits>(p, nothing, row, item.head * p.group + member, part_column(thread));
    }
    if (p.blocks == Blocks::Scored && item.tile == 0)
      store_empty_selection(p.select, row, item.head, thread);
  }
}

/// Whether this CTA, and with it its cluster, is there while scores are still computed and knows
/// its row by then: rehearsed behind the scores, it costs time and gains none.
template <class Traits>
__device__ __forceinline__ bool rehearses(const AttendParams& p) {
  const unsigned behind = (blockIdx.z * gridDim.y + blockIdx.y + 1) * gridDim.x;
  return Traits::kSelects && Traits::kRehearses && p.blocks == Blocks::Scored &&
         behind <= static_cast<unsigned>(p.rehearsals) && records_are_early(p.select.batch);
}

/// Barriers, and descriptors on their way; one thread, in front of the CTA's first barrier.
template <class Traits, class Params>
__device__ __forceinline__ void prepare(const Params& p, AttendShared<Traits>& shared) {
  using Engine = typename Traits::Engine;
  shared.ring.init(Traits::kReleases, Traits::kFillings);
  Engine::init_exchange(shared);
  ptx::fence_mbarrier_init();
  Engine::prepare_exchange(shared);
  Engine::prefetch(p.k);
  Engine::prefetch(p.v);
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kAttendBound)
    attend_kernel(const __grid_constant__ ParamsOf<Traits> p) {
  using Engine = typename Traits::Engine;
  extern __shared__ std::uint8_t raw[];
  std::uint8_t* stages = align_shared<1024>(raw);
  auto& shared = *reinterpret_cast<AttendShared<Traits>*>(stages + Traits::kRingBytes);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) prepare<Traits>(p, shared);
  if constexpr (Traits::kPacked)
    fill_table<Traits>(p.k_groups, common::scale_of_all(p.k_groups), shared.magnitudes);
  __syncthreads();
  if constexpr (Engine::kClusters) {
    if (clusters(p.splits)) Engine::arrive_early();
  }
  if (warp == Traits::kConsumers && p.blocks == Blocks::Scored)
    touch_pages(p.select.batch, make_item(p).request, lane);
  RingPosition<Traits::kStages> at;
#pragma unroll 1  // the rehearsal runs the very instructions
  for (int pass = rehearses<Traits>(p) ? 0 : 1; pass < 2; ++pass) {
    const bool rehearsal = pass == 0;
    Item item = make_item(p);
    const RequestRecord r = early_request(p.select.batch, p.select.records, item.request);
    item.row = r.q_begin + item.token;
    item.visible = visible_keys(r, item.token, p.select.batch.causal != 0);
    SelectRow row{};
    if (p.blocks == Blocks::Scored) row = select_row(p.select, r, item.token, item.head);
    const std::int64_t padding = padding_begin(p.select.batch);
    if (threadIdx.x == 0) shared.item = item;
    if (!rehearsal) {
      ptx::griddepcontrol_wait();
      store_padding<Traits>(p, item, padding, threadIdx.x);
    }
    if (item.token >= r.seqlen_q) continue;  // and with it the whole cluster
    find_blocks<Traits>(p, r, item, row, shared, stages, rehearsal);
    attend_item<Traits>(p, r, item, shared, stages, at, rehearsal, warp, lane);
    if (rehearsal) __syncthreads();
  }
}

template <class Traits, class Params>
void launch_attend_grid(void (*kernel)(Params), const Params& params, cudaStream_t stream) {
  const BatchParams& batch = params.select.batch;
  launch_kernel(
      kernel,
      {.grid = dim3(static_cast<unsigned>(params.splits),
                    static_cast<unsigned>(params.heads_kv * params.tiles),
                    static_cast<unsigned>(std::max(batch.batch, 1) * params.select.token_slots)),
       .block = dim3(Traits::kThreads),
       .shared_bytes = static_cast<std::size_t>(attend_shared_bytes<Traits>()),
       .programmatic = true,
       .cluster = Traits::Engine::kClusters && clusters(params.splits)
                      ? static_cast<unsigned>(params.splits)
                      : 1,
       .stream = stream},
      params);
}

template <class Traits>
void launch_attend_kernel(const ParamsOf<Traits>& params, cudaStream_t stream) {
  launch_attend_grid<Traits>(attend_kernel<Traits>, params, stream);
}

}  // namespace msa::cuda::common::decode
