// SPDX-License-Identifier: MIT
// How a tile of keys and the query rows of its steps come into shared memory: every thread of the
// CTA copies 16 bytes at a time and waits for none of them. A row of a step is a (token, query
// head) pair: the first kRows threads find out which, two steps ahead.
#pragma once

#include "cuda/common/backward/average.cuh"
#include "cuda/common/backward/tiles.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/tile/swizzle.cuh"
#include "cuda/mma/backward/traits.cuh"

namespace msa::cuda::mma::backward {

template <class Traits>
class Loader {
 public:
  using Shared = typename Traits::Shared;
  using RowInfo = typename Traits::RowInfo;

  __device__ __forceinline__ Loader(const Params& params, Shared& shared)
      : params_(params), shared_(shared) {}

  __device__ __forceinline__ int steps() const { return (num_rows() + kRows - 1) / kRows; }

  __device__ __forceinline__ RowInfo& info(int step) const {
    return shared_.infos[step % kRowInfos];
  }

  /// Keys behind the request's last are zeros.
  __device__ __forceinline__ void load_keys() const {
    load_keys(params_.k, shared_.k);
    load_keys(params_.v, shared_.v);
  }

  /// Looks up this thread's row of a step in the inverse; does not wait.
  __device__ __forceinline__ void find(int step) const {
    const common::backward::Pairs& p = params_.pairs;
    const int row = thread();
    if (p.listed == 0 || row >= kRows || step >= steps()) return;
    RowInfo& to = info(step);
    const std::int64_t at = std::int64_t{shared_.item.begin} + token_of(step * kRows + row);
    const int head = shared_.item.head;
    ptx::cp_async<4>(&to.row[row], &common::backward::inverse_entry(p.q_indices, head, at), 4);
    ptx::cp_async<4>(&to.limit[row], &common::backward::inverse_entry(p.q_slots, head, at), 4);
  }

  /// What is known of this thread's row of a step, once it is found.
  __device__ __forceinline__ void tell(int step) const {
    const common::backward::Pairs& p = params_.pairs;
    const int row = thread();
    if (row >= kRows) return;
    RowInfo& to = info(step);
    const int number = step * kRows + row;
    const int head = number % p.group;
    to.head[row] = shared_.item.head * p.group + head;
    const int place = to.limit[row];
    to.share[row] = -1;
    to.limit[row] = 0;
    if (p.listed == 0) to.row[row] = shared_.item.begin + token_of(number);
    if (number >= num_rows()) return;
    to.share[row] = common::backward::slot_of(p, shared_.item, to.row[row], place) * p.group + head;
    to.limit[row] = min(
        visible_keys(shared_.request, to.row[row] - shared_.request.q_begin, p.batch.causal != 0) -
            first_key(),
        Traits::kKeys);
  }

  /// q, dout and what is known of the rows of a step. Behind the item's last token its row of q
  /// comes again, with zeros of dout: P dout and dS are 0. With zeros in place of q they would be
  /// NaN for a key of -inf, which weighs nothing.
  __device__ __forceinline__ void load(int step) const {
    const RowInfo& rows = info(step);
    load_rows(params_.q, shared_.q[step % 2], rows, [](int) { return true; });
    load_rows(params_.dout, shared_.dout[step % 2], rows,
              [&rows](int row) { return rows.share[row] >= 0; });
    const int row = thread();
    if (row >= kRows) return;
    RowInfo& to = info(step);
    const std::int64_t token = to.row[row];
    const int heads = params_.pairs.heads_kv * params_.pairs.group;
    ptx::cp_async<4>(
        &to.lse[row],
        params_.lse.data + token * params_.lse.stride_t + to.head[row] * params_.lse.stride_h, 4);
    ptx::cp_async<4>(&to.delta[row], params_.delta + token * heads + to.head[row],
                     to.share[row] >= 0 ? 4 : 0);
  }

  /// Whether this thread's row attends to nothing, as its lse, which has arrived, says. It then
  /// sees nothing here, either.
  __device__ __forceinline__ bool is_blind(int step) const {
    const int row = thread();
    if (row >= kRows) return false;
    RowInfo& rows = info(step);
    if (rows.lse[row] != common::kMinusInf) return false;
    rows.limit[row] = 0;
    return true;
  }

  /// What the tile's keys have in common. Threads meet in it.
  __device__ __forceinline__ void average() const {
    common::backward::average_keys<Traits::kHeadDim, Traits::kThreads>(
        min(Traits::kKeys, shared_.request.seqlen_k - first_key()), shared_.mean, shared_.alike,
        thread(),
        [&](int key, int column) {
          return common::to_float(*reinterpret_cast<const typename Traits::Item*>(
              shared_.k + common::swizzled_item(key, column, Traits::kKeys)));
        },
        [] { Traits::sync(); });
  }

 private:
  static constexpr int kRows = Traits::kRows;
  static constexpr int kChunks = Traits::kHeadDim / 8;  // of 16 bytes in a row
  static constexpr int kRowsAtOnce = Traits::kThreads / kChunks;
  static_assert(kRowsAtOnce % 8 == 0, "the swizzle of all of a thread's rows is one");

  __device__ __forceinline__ int num_rows() const {
    return shared_.item.count * params_.pairs.group;
  }
  /// Of the item: that of row `number`, or behind the last one the last.
  __device__ __forceinline__ int token_of(int number) const {
    return min(number / params_.pairs.group, shared_.item.count - 1);
  }
  __device__ __forceinline__ int first_key() const { return shared_.item.tile * Traits::kKeys; }

  /// In the CTA: anew in each step, as what is made of it would wait in registers.
  __device__ __forceinline__ static int thread() {
    return static_cast<int>(threadIdx.x) / 32 * 32 + ptx::laneid();
  }
  /// The first of this thread's rows, and which chunk of a row is this thread's.
  __device__ __forceinline__ static int first_row() { return thread() / kChunks; }
  __device__ __forceinline__ static int chunk() { return thread() % kChunks; }

  __device__ __forceinline__ void load_keys(const KeyRows<const std::uint16_t>& rows,
                                            std::uint8_t* tile) const {
    const int left = shared_.request.seqlen_k - first_key();
    std::uint8_t* to = tile + (chunk() >> 3) * Traits::kKeys * 128 +
                       common::swizzled_chunk(first_row(), chunk() & 7);
#pragma unroll
    for (int row = 0; row < Traits::kKeys; row += kRowsAtOnce) {
      const bool there = first_row() + row < left;
      const std::int64_t key =
          there ? shared_.request.k_begin + first_key() + first_row() + row : 0;
      ptx::cp_async_16(
          to + row * 128,
          rows.data + key * rows.stride_token + shared_.item.head * rows.stride_head + chunk() * 8,
          there ? 16 : 0);
    }
  }

  template <class There>
  __device__ __forceinline__ void load_rows(const Rows<const void>& rows, std::uint8_t* tile,
                                            const RowInfo& infos, const There& there) const {
    std::uint8_t* to =
        tile + (chunk() >> 3) * kRows * 128 + common::swizzled_chunk(first_row(), chunk() & 7);
    const auto* from = static_cast<const std::uint16_t*>(rows.data) + chunk() * 8;
#pragma unroll
    for (int i = 0; i < kRows; i += kRowsAtOnce) {
      const int row = first_row() + i;
      const std::int64_t at = infos.row[row] * rows.stride_t + infos.head[row] * rows.stride_h;
      ptx::cp_async_16(to + i * 128, from + at, there(row) ? 16 : 0);
    }
  }

  const Params& params_;
  Shared& shared_;
};

}  // namespace msa::cuda::mma::backward
