// SPDX-License-Identifier: MIT
// Up to eight CTAs of a row form a cluster and hand parts of it to each other.
#pragma once

#include <cstdint>

#include "cuda/common/decode/attend/join.cuh"
#include "cuda/sm90/decode/engine.cuh"
#include "cuda/sm90/ptx/cluster.cuh"

namespace msa::cuda::sm90::decode {

/// Logarithm of the rows that a CTA of a cluster finishes.
__device__ __forceinline__ int rows_shift(int splits) { return 5 - __ffs(splits); }

struct AttendEngine : Engine {
  /// Parts of the rows that this CTA of a cluster finishes, [split][row].
  template <class Traits>
  struct Exchange {
    ptx::Mbarrier full;
    float4 state[16];  // maximum and sum
    alignas(16) float out[16][Traits::kDim];
  };

  /// One thread.
  template <class Shared>
  static __device__ __forceinline__ void init_exchange(Shared& shared) {
    ptx::mbarrier_init(&shared.exchange.full, 1);
  }
  template <class Shared>
  static __device__ __forceinline__ void prepare_exchange(Shared& shared) {
    ptx::mbarrier_arrive_expect_tx(&shared.exchange.full,
                                   sizeof(shared.exchange.state) + sizeof(shared.exchange.out));
  }
  static __device__ __forceinline__ void arrive_early() { ptx::barrier_cluster_arrive_relaxed(); }

  /// Hands this split's part of every row to the CTA of the cluster that finishes the row, and
  /// waits for its own.
  template <class Traits>
  static __device__ __forceinline__ void exchange_parts(
      const common::decode::AttendParams& p, const common::decode::Item& item,
      const common::decode::RowEighth<Traits>& part, common::decode::AttendShared<Traits>& shared,
      int thread) {
    const int shift = rows_shift(p.splits);
    const int row = thread / 8;
    const int owner = row >> shift;
    const int slot = (item.split << shift) + row - (owner << shift);
    ptx::barrier_cluster_wait();  // every CTA's barrier is ready
    const std::uint32_t out =
        ptx::mapa(&shared.exchange.out[slot][common::decode::part_column(thread)], owner);
    const std::uint32_t full = ptx::mapa(&shared.exchange.full, owner);
#pragma unroll
    for (int j = 0; j < common::decode::RowEighth<Traits>::kGroups; ++j)
      ptx::st_async(out + j * 32 * sizeof(float), part.out[j], full);
    if (thread % 8 == 0) {
      ptx::st_async(ptx::mapa(&shared.exchange.state[slot], owner),
                    {part.state.top, part.state.sum, 0, 0}, full);
    }
    while (!ptx::mbarrier_try_wait_parity_cluster(&shared.exchange.full, 0)) {
    }
  }

  /// Finishes this CTA's rows of a cluster, from the parts of all splits, in that order.
  template <class Traits>
  static __device__ __forceinline__ void finish_rows(
      const common::decode::AttendParams& p, const common::decode::Item& item,
      const common::decode::AttendShared<Traits>& shared, bool rehearsal, int thread) {
    constexpr int kFours = Traits::kDim / 4;  // of columns in a row
    constexpr int kMostSplits = 8;
    const int rows = 1 << rows_shift(p.splits);
#pragma unroll 1
    for (int at = thread; at < rows * kFours; at += Traits::kConsumers * 32) {
      const int row = at / kFours;
      const int column = at % kFours * 4;
      common::decode::RowPart<1> whole{};
      common::RowState states[kMostSplits];  // behind the last split sums of 0
#pragma unroll
      for (int i = 0; i < kMostSplits; ++i) {
        const float4 state = shared.exchange.state[min(i, p.splits - 1) * rows + row];
        states[i] = {state.x, i < p.splits ? state.y : 0.0f};
      }
      whole.state = common::join_by_lse<kMostSplits>(
          kMostSplits, p.scale_log2, [&](int i) { return states[i]; },
          [&](int i, float weight) {
            if (i >= p.splits) return;
            common::decode::add_share(
                whole, weight,
                {*reinterpret_cast<const float4*>(&shared.exchange.out[i * rows + row][column])});
          });
      const int member = item.tile * 16 + item.split * rows + row;
      if (member < p.group && !rehearsal)
        common::decode::store_row<Traits>(p, whole, item.row, item.head * p.group + member, column);
    }
  }
};

}  // namespace msa::cuda::sm90::decode
