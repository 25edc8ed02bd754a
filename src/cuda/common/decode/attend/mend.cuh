// SPDX-License-Identifier: MIT
// Attention of single (row, KV head) pairs, for those whose tile ended non-finite in a kernel that
// shares tiles between rows: there 0 * NaN leaks from one query's keys to its neighbours. Here a
// tile is one row's, so nothing can. Every CTA reads the bits of all pairs and takes each
// gridDim.x-th of those that are set; neighbours, which list much the same blocks, run at the same
// time.
#pragma once

#include "cuda/common/attend/suspects.cuh"
#include "cuda/common/decode/attend/launch.h"
#include "cuda/common/decode/attend/row.cuh"
#include "cuda/common/tile/align.cuh"
#include "cuda/common/tile/pipeline.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::decode {

using common::attend::SuspectFinder;

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kMendBound)
    mend_kernel(const __grid_constant__ MendParamsOf<typename Traits::Engine::Keys> mend) {
  const ParamsOf<Traits>& p = mend.attend;
  extern __shared__ std::uint8_t raw[];
  std::uint8_t* stages = align_shared<1024>(raw);
  auto& shared = *reinterpret_cast<AttendShared<Traits>*>(stages + Traits::kRingBytes);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  ptx::griddepcontrol_wait();
  if (*mend.suspects.any == 0) return;
  if (threadIdx.x == 0) {
    shared.ring.init(Traits::kReleases, Traits::kFillings);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  const BatchParams& batch = p.select.batch;
  SuspectFinder finder;
  RingPosition<Traits::kStages> at;
  while (true) {
    const std::int64_t pair = finder.next(mend.suspects, batch.total_q * p.heads_kv, lane);
    if (pair < 0) return;
    Item item{};
    item.row = pair / p.heads_kv;
    item.head = static_cast<int>(pair - item.row * p.heads_kv);
    item.request = owner_of(batch, p.select.records, item.row);
    if (item.request < 0) continue;
    const RequestRecord& r = p.select.records[item.request];
    item.token = static_cast<int>(item.row - r.q_begin);
    item.visible = visible_keys(r, item.token, batch.causal != 0);
#pragma unroll 1
    for (item.tile = 0; item.tile < p.tiles; ++item.tile) {
      if (threadIdx.x == 0) shared.item = item;
      find_blocks<Traits>(p, r, item, SelectRow{}, shared, stages, false);
      attend_item<Traits>(p, r, item, shared, stages, at, false, warp, lane);
      item = shared.item;               // rather than kept in registers
      ptx::fence_proxy_async_shared();  // the copy engine writes where the shares were joined
      __syncthreads();
    }
  }
}

template <class Traits>
void launch_mend_kernel(const MendParamsOf<typename Traits::Engine::Keys>& params,
                        int multiprocessors, cudaStream_t stream) {
  launch_kernel(mend_kernel<Traits>,
                {.grid = dim3(static_cast<unsigned>(Traits::kCtasPerSm * multiprocessors)),
                 .block = dim3(Traits::kThreads),
                 .shared_bytes = static_cast<std::size_t>(attend_shared_bytes<Traits>()),
                 .programmatic = true,
                 .stream = stream},
                params);
}

}  // namespace msa::cuda::common::decode
