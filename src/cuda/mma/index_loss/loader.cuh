// SPDX-License-Identifier: MIT
// How tiles of keys and index keys, the tokens of steps and the query rows of turns come into
// shared memory: every thread copies 16 bytes at a time and waits for none of them. A step has
// kTokens tokens; their query heads come in turns of kTurnRows rows.
#pragma once

#include "cuda/common/backward/tiles.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/tile/swizzle.cuh"
#include "cuda/mma/index_loss/traits.cuh"

namespace msa::cuda::mma::index_loss {

template <class Traits>
class Loader {
 public:
  using Shared = typename Traits::Shared;
  using TokenInfo = typename Traits::TokenInfo;

  __device__ __forceinline__ Loader(const Params& params, Shared& shared)
      : params_(params), shared_(shared), padding_(padding_of(params.group)) {}

  __device__ __forceinline__ int steps() const {
    return (shared_.item.count + kTokens - 1) / kTokens;
  }
  /// Rows of a token in a turn, a power of two, tokens of a turn, and turns of a step.
  __device__ __forceinline__ int token_rows() const { return 1 << padding_; }
  __device__ __forceinline__ int turn_tokens() const { return kTurnRows >> padding_; }
  __device__ __forceinline__ int turns() const { return (kTokens << padding_) / kTurnRows; }

  __device__ __forceinline__ TokenInfo& info(int step) const {
    return shared_.infos[step % kTokenInfos];
  }

  /// Keys behind the request's last are zeros.
  __device__ __forceinline__ void load_keys(bool teacher) const {
    const int head = shared_.item.head;
    if (teacher) load_tile<Traits::kHeadDim>(params_.k, head, shared_.k);
    load_tile<Traits::kIndexDim>(params_.index_k, head / params_.index_heads, shared_.index_k);
  }

  /// Looks up this thread's token of a step in the inverse; does not wait.
  __device__ __forceinline__ void find(int step) const {
    const common::backward::Pairs& p = params_.pairs;
    const int token = static_cast<int>(threadIdx.x);
    if (p.listed == 0 || token >= kTokens || step * kTokens + token >= shared_.item.count) return;
    TokenInfo& to = info(step);
    const std::int64_t at = std::int64_t{shared_.item.begin} + step * kTokens + token;
    const int head = shared_.item.head;
    ptx::cp_async<4>(&to.row[token], &common::backward::inverse_entry(p.q_indices, head, at), 4);
    ptx::cp_async<4>(&to.place[token], &common::backward::inverse_entry(p.q_slots, head, at), 4);
  }

  /// What is known of this thread's token of a step, once it is found.
  __device__ __forceinline__ void tell(int step) const {
    const common::backward::Pairs& p = params_.pairs;
    const int token = static_cast<int>(threadIdx.x);
    if (token >= kTokens) return;
    TokenInfo& to = info(step);
    const int number = step * kTokens + token;
    to.slot[token] = -1;
    to.limit[token] = 0;
    if (number >= shared_.item.count) {
      to.row[token] = -1;
      return;
    }
    if (p.listed == 0) to.row[token] = shared_.item.begin + number;
    to.slot[token] = common::backward::slot_of(p, shared_.item, to.row[token], to.place[token]);
    const std::int64_t row = to.row[token] - shared_.request.q_begin;
    to.limit[token] =
        min(visible_keys(shared_.request, row, p.batch.causal != 0) - first_key(), Traits::kKeys);
  }

  /// index_q, weights and logarithms of a step's tokens. Those behind the item's last are zeros.
  __device__ __forceinline__ void load_tokens(int step) const {
    constexpr int kChunks = Traits::kIndexDim / 8;
    TokenInfo& infos = info(step);
    const auto* from = static_cast<const std::uint16_t*>(params_.index_q.data) +
                       shared_.item.head * params_.index_q.stride_h;
    for (int i = static_cast<int>(threadIdx.x); i < kTokens * kChunks; i += Traits::kThreads) {
      const int token = i / kChunks;
      const int chunk = i % kChunks;
      const int row = infos.row[token];
      ptx::cp_async_16(shared_.index_q[step % 2] + (chunk >> 3) * kTokens * 128 +
                           common::swizzled_chunk(token, chunk & 7),
                       from + (row < 0 ? 0 : row * params_.index_q.stride_t) + chunk * 8,
                       row < 0 ? 0 : 16);
    }
    const int token = static_cast<int>(threadIdx.x);
    if (token >= kTokens) return;
    const std::int64_t row = infos.row[token];
    const bool there = row >= 0;
    infos.weight[token] = 1.0f;
    if (params_.weights != nullptr) {
      ptx::cp_async<4>(&infos.weight[token],
                       params_.weights + (there ? row * params_.stride_weights : 0), there ? 4 : 0);
    }
    if (params_.student_lse == nullptr) return;
    ptx::cp_async<4>(
        &infos.student[token],
        params_.student_lse + (there ? row * params_.pairs.heads_kv + shared_.item.head : 0),
        there ? 4 : 0);
  }

  /// q and lse of a turn's rows, in the stage of turns `stage`. Rows behind a token's heads, and
  /// behind the item's last token, are zeros and have no weights.
  __device__ __forceinline__ void load_turn(int step, int turn, int stage) const {
    constexpr int kChunks = Traits::kHeadDim / 8;
    const TokenInfo& infos = info(step);
    const auto* q = static_cast<const std::uint16_t*>(params_.q.data);
    for (int i = static_cast<int>(threadIdx.x); i < kTurnRows * kChunks; i += Traits::kThreads) {
      const int row = i / kChunks;
      const int chunk = i % kChunks;
      const Source source = source_of(infos, turn, row);
      const std::int64_t at =
          source.there ? source.row * params_.q.stride_t + source.head * params_.q.stride_h : 0;
      ptx::cp_async_16(shared_.q[stage] + (chunk >> 3) * kTurnRows * 128 +
                           common::swizzled_chunk(row, chunk & 7),
                       q + at + chunk * 8, source.there ? 16 : 0);
    }
    for (int row = static_cast<int>(threadIdx.x); row < kTurnRows; row += Traits::kThreads) {
      const Source source = source_of(infos, turn, row);
      if (source.there) {
        ptx::cp_async<4>(&shared_.lse[stage][row],
                         params_.lse.data + source.row * params_.lse.stride_t +
                             source.head * params_.lse.stride_h,
                         4);
      } else {
        shared_.lse[stage][row] = common::kMinusInf;
      }
    }
  }

  /// Whether this thread's token gives nothing, as the student's logarithm, which has arrived,
  /// says. It then sees nothing here, either.
  __device__ __forceinline__ bool is_blind(int step) const {
    const int token = static_cast<int>(threadIdx.x);
    if (token >= kTokens) return false;
    TokenInfo& tokens = info(step);
    if (tokens.row[token] < 0 || tokens.student[token] != common::kMinusInf) return false;
    tokens.limit[token] = 0;
    return true;
  }

 private:
  /// Where a row of a turn comes from.
  struct Source {
    std::int64_t row;
    int head;  // of q
    bool there;
  };
  __device__ __forceinline__ Source source_of(const TokenInfo& infos, int turn, int row) const {
    const int token = turn * turn_tokens() + (row >> padding_);
    const int head = row & (token_rows() - 1);
    return {infos.row[token], shared_.item.head * params_.group + head,
            infos.row[token] >= 0 && head < params_.group};
  }

  __device__ __forceinline__ static int padding_of(int group) {
    return group <= 8 ? 3 : 32 - __clz(group - 1);
  }
  __device__ __forceinline__ int first_key() const { return shared_.item.tile * Traits::kKeys; }

  template <int kDim>
  __device__ __forceinline__ void load_tile(const KeyRows<const std::uint16_t>& rows, int head,
                                            std::uint8_t* tile) const {
    constexpr int kChunks = kDim / 8;
    const int left = shared_.request.seqlen_k - first_key();
    for (int i = static_cast<int>(threadIdx.x); i < Traits::kKeys * kChunks;
         i += Traits::kThreads) {
      const int key = i / kChunks;
      const int chunk = i % kChunks;
      const bool there = key < left;
      const std::int64_t row = there ? shared_.request.k_begin + first_key() + key : 0;
      ptx::cp_async_16(
          tile + (chunk >> 3) * Traits::kKeys * 128 + common::swizzled_chunk(key, chunk & 7),
          rows.data + row * rows.stride_token + head * rows.stride_head + chunk * 8,
          there ? 16 : 0);
    }
  }

  const Params& params_;
  Shared& shared_;
  const int padding_;  // log2 of a token's rows
};

}  // namespace msa::cuda::mma::index_loss
