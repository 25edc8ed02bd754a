// SPDX-License-Identifier: MIT
// Decode attention of rows whose blocks lie on the GPUs of one host. Every CTA selects the row's
// candidates here, as in attention that selects for itself, and chooses among those of all ranks
// (ranks.cuh); then it attends to what of the list lies here. Outputs and lses go to every rank,
// unjoined.
//
// A CTA waits for the CTAs of its row on the other ranks, and of its own rank for nothing but what
// was launched before. They say what they have before they wait, and CTAs start in the order of
// their numbers, the same on all ranks: so the first row that is not done goes on everywhere.
//
// Nothing is written again before it was read: who sends candidates of the next layer has joined
// this one, for which every rank had attended; and who sends states has candidates of all ranks,
// which they send behind the join of the layer before.
#pragma once

#include "cuda/common/decode/attend/kernel.cuh"
#include "cuda/common/decode/attend/ranks.cuh"

namespace msa::cuda::common::decode {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kAttendBound)
    attend_ranks_kernel(const __grid_constant__ RanksParamsOf<Traits> p) {
  using Engine = typename Traits::Engine;
  static_assert(Engine::kClusters && !Traits::kCodes, "what kRanksInstances names");
  extern __shared__ std::uint8_t raw[];
  std::uint8_t* stages = align_shared<1024>(raw);
  auto& shared = *reinterpret_cast<AttendShared<Traits>*>(stages + Traits::kRingBytes);
  const BatchParams& batch = p.select.batch;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) prepare<Traits>(p, shared);
  __syncthreads();
  if (clusters(p.splits)) Engine::arrive_early();
  if (warp == Traits::kConsumers) touch_pages(batch, make_item(p).request, lane);
  RingPosition<Traits::kStages> at;
#pragma unroll 1  // the rehearsal runs the very instructions
  for (int pass = rehearses<Traits>(p) ? 0 : 1; pass < 2; ++pass) {
    const bool rehearsal = pass == 0;
    Item item = make_item(p);
    RequestRecord r = early_request(batch, p.select.records, item.request);
    item.row = r.q_begin + item.token;
    if (!rehearsal) {
      ptx::griddepcontrol_wait();
      ptx::griddepcontrol_launch_dependents();
    }
    const std::uint32_t number = p.among.counts[0] + 1;
    if (blockIdx.x + blockIdx.y + blockIdx.z == 0 && threadIdx.x == 0 && !rehearsal)
      p.among.counts[1] = number - 1;        // the join behind takes the next one, this one's
    if (item.token >= r.seqlen_q) continue;  // and with it the whole cluster
    const SelectRow row = select_row(p.select, r, item.token, item.head);
    // What is attended to: candidates were the blocks in front of what is forced.
    const std::int64_t room = min(batch.max_seqlen_k, batch.page_columns * batch.page_size);
    r.seqlen_k = static_cast<int>(clamp64(std::int64_t{p.among.last_keys[item.row]} + 1, 0, room));
    item.visible = r.seqlen_k;
    if (threadIdx.x == 0) shared.item = item;
    if (select_blocks<Traits>(p, item, row, shared, stages, rehearsal)) {
      const Slots<int>& ids = p.select.ids;
      choose_among_ranks(
          shared.select, p.among,
          {.row = item.row * p.select.heads + item.head,
           .rows = batch.total_q * p.select.heads,
           .token = item.row,
           .blocks = (item.visible + Traits::kBlock - 1) / Traits::kBlock,
           .tells = item.split == 0 && item.tile == 0,
           .list = ids.data == nullptr ? nullptr : common::slots_of(ids, item.row, item.head),
           .stride = ids.stride_slot},
          p.select.topk, number, stages, threadIdx.x, rehearsal);
    }
    if (!rehearsal) {
      item.num_entries = shared.select.num_ids;
      share_blocks(p, item);
    }
    attend_item<Traits>(p, r, item, shared, stages, at, rehearsal, warp, lane);
    if (rehearsal) __syncthreads();
  }
}

template <class Traits>
void launch_attend_ranks_kernel(const RanksParamsOf<Traits>& params, cudaStream_t stream) {
  static_assert(sizeof(params) <= 4096, "parameters of a kernel on every driver");
  launch_attend_grid<Traits>(attend_ranks_kernel<Traits>, params, stream);
}

}  // namespace msa::cuda::common::decode
