// SPDX-License-Identifier: MIT
// What a warp does: 16 keys of the tile are its own. Keys are the rows of every product, so that
// the query heads of a token are neighbouring columns: their mean, the teacher, is a few additions
// and two shuffles, and lies where the student's score of the token lies.
#pragma once

#include "cuda/common/backward/key_rows.cuh"
#include "cuda/common/backward/shares.cuh"
#include "cuda/common/tile/fragment.cuh"
#include "cuda/common/tile/swizzle.cuh"
#include "cuda/mma/index_loss/traits.cuh"
#include "cuda/mma/tile/seen.cuh"

namespace msa::cuda::mma::index_loss {

template <class Traits>
class Consumer {
 public:
  using Item = typename Traits::Item;
  using Shared = typename Traits::Shared;
  using TokenInfo = typename Traits::TokenInfo;
  static constexpr int kPairs = Traits::kOwnTokens / 2;  // (key, token) pairs of a thread
  static constexpr int kSums = Traits::kOwnDims / 2;

  using Exchange = typename Traits::Exchange;

  /// Of teams, each with all keys, one has some of the tokens, and of the columns of d_index_k.
  __device__ __forceinline__ Consumer(Shared& shared, Exchange& exchange, int warp, int team = 0)
      : shared_(shared),
        exchange_(&exchange),
        warp_(warp),
        team_(team),
        lane_(static_cast<int>(threadIdx.x) % 32) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums_[i] = 0.0f;
  }

  /// Scores of the student for a step's tokens, to base 2: -inf where a token does not see a key.
  __device__ __forceinline__ void score(const TokenInfo& tokens, int stage, float scale_log2) {
    multiply_tiles<Item, Traits::kIndexDim>(shared_.index_k, Traits::kKeys, 16 * warp_,
                                            shared_.index_q[stage], kTokens, 0, lane_, scores_);
    mask(tokens, scale_log2);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) teacher_[i] = 0.0f;
  }

  /// The largest score of each token, and the sum of powers against it: of the warp's keys, for
  /// finish_student.
  __device__ __forceinline__ void sum_student() {
#pragma unroll
    for (int n = 0; n < Traits::kOwnTokens / 8; ++n) {
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const float own[2] = {scores_[4 * n + x], scores_[4 * n + 2 + x]};
        float top = fmaxf(own[0], own[1]);
#pragma unroll
        for (int step = 4; step < 32; step *= 2)
          top = fmaxf(top, __shfl_xor_sync(common::kAllLanes, top, step));
        const float base = top == common::kMinusInf ? 0.0f : top;
        const float sum = sum_keys(ptx::ex2(own[0] - base) + ptx::ex2(own[1] - base));
        if (lane_ >= 4) continue;
        const int token = token_of(4 * n + x);
        exchange_->of_warps[0][warp_][token] = top;
        exchange_->of_warps[1][warp_][token] = sum;
      }
    }
  }

  /// Adds the weights of a turn's query heads to those of its tokens, which have `token_rows` rows
  /// each, a power of two. All threads.
  __device__ __forceinline__ void teach(int stage, int first_token, int token_rows,
                                        float scale_log2) {
    float weights[kTurnRows / 2];
    multiply_tiles<Item, Traits::kHeadDim>(shared_.k, Traits::kKeys, 16 * warp_, shared_.q[stage],
                                           kTurnRows, 0, lane_, weights);
    const float* lse = shared_.lse[stage];
    float sums[2] = {};
    int token = first_token;
#pragma unroll
    for (int n = 0; n < kTurnRows / 8; ++n) {
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        const float own = lse[8 * n + common::fragment_column(lane_) + x % 2];
        const float weight = ptx::ex2(fmaf(weights[4 * n + x], scale_log2, -own * common::kLog2e));
        sums[x / 2] += own == common::kMinusInf ? 0.0f : weight;
      }
      if (((8 * n + 8) & (token_rows - 1)) != 0) continue;
      keep(token++, common::quad::sum(sums[0]), common::quad::sum(sums[1]));
      sums[0] = sums[1] = 0.0f;
    }
  }

  /// What each pair of a key and a token gives: its share of the loss, and the gradient of the
  /// student's score.
  __device__ __forceinline__ void derive(const TokenInfo& tokens, float per_head) {
    float losses[kPairs / 2] = {};
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int token = token_of(i);
      const float whole = tokens.student[token];
      const float teacher = teacher_[i] * per_head;
      const bool counts = sees(tokens, i) && whole != common::kMinusInf;
      const float log_student = scores_[i] - whole;
      // Below it the logarithm would be that of 0; NaN is not.
      if (counts && !(teacher < kSmallestNormal))
        losses[i / 4 * 2 + i % 2] += teacher * (ptx::lg2(teacher) - log_student) * common::kLn2;
      scores_[i] = counts ? ptx::ex2(log_student) - teacher : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kPairs / 2; ++i) {
      const float sum = sum_keys(losses[i]);
      if (lane_ < 4) exchange_->of_warps[0][warp_][token_of(i / 2 * 4 + i % 2)] = sum;
    }
  }

  /// Gradients of scores, rounded once, go into shared memory where d_index_q is wanted, and, times
  /// the tokens' weights, to d_index_k: add(e), once or twice.
  template <class Add>
  __device__ __forceinline__ void add_keys(const TokenInfo& tokens, bool keys, bool queries,
                                           bool weighted, const Add& add) {
    Gradients e;
    round_gradients(e);
    if (queries) store(e, exchange_->e);
    if (!keys) return;
    if (!weighted) return add(e);
    Gradients rest;
    weigh_gradients(tokens, e, rest);
    add(e);
    add(rest);
  }

  /// The tile's share of d_index_q: a warp has some of the columns.
  template <bool kMasked>
  __device__ __forceinline__ void share_queries(const TokenInfo& tokens, const Exchange& from,
                                                const common::backward::Shares& to) const {
    constexpr int kDims = Traits::kPartDims;
    const auto load_e = [&](std::uint32_t(&a)[4], int k) {
      const int key = 16 * k + lane_ % 8 + lane_ / 16 * 8;
      ptx::ldmatrix_x4_trans(
          a, ptx::cvta_to_shared(from.e) + Traits::e_offset(key, lane_ / 8 % 2 * 8));
    };
    const auto load_keys = [&](std::uint32_t(&b)[4], int k, int n) {
      load_columns(b, shared_.index_k, Traits::kKeys, k, warp_ * (kDims / 16) + n, lane_);
    };
    float sums[kDims / 2] = {};
    if constexpr (kMasked) {
      multiply_seen<Item>(tokens.limit, Traits::kKeys, lane_, load_e, load_keys, sums);
    } else {
#pragma unroll
      for (int k = 0; k < Traits::kKeys / 16; ++k) {
        std::uint32_t a[4];
        load_e(a, k);
#pragma unroll
        for (int n = 0; n < kDims / 16; ++n) {
          std::uint32_t b[4];
          load_keys(b, k, n);
          multiply_columns<Item>(sums, n, a, b);
        }
      }
    }
    store_share(tokens, to, sums);
  }

  /// sums_ += e times the step's index_q.
  template <bool kMasked>
  __device__ __forceinline__ void add_product(const TokenInfo& tokens, int stage,
                                              const std::uint32_t (&e)[4]) {
    const auto load = [&](std::uint32_t(&b)[4], int n) {
      load_columns(b, shared_.index_q[stage], kTokens, 0, team_ * (Traits::kOwnDims / 16) + n,
                   lane_);
    };
    if constexpr (kMasked) {
      add_seen<Item>(tokens.limit, 16 * warp_, lane_, e, load, sums_);
    } else {
#pragma unroll
      for (int n = 0; n < Traits::kOwnDims / 16; ++n) {
        std::uint32_t b[4];
        load(b, n);
        multiply_columns<Item>(sums_, n, e, b);
      }
    }
  }

  /// Where the thread's sums of columns 8 n and on of the warp's lie in a tile's.
  __device__ __forceinline__ int vector_of(int n) const {
    return common::backward::vector_of(warp_, team_ * (Traits::kOwnDims / 8) + n, lane_,
                                       Traits::kIndexDim);
  }

  float sums_[kSums];  // of d_index_k

 protected:
  /// Of (key, token) pairs, in the order of a first factor's fragments.
  using Gradients = std::uint32_t[kPairs / 2];

  __device__ __forceinline__ void round_gradients(Gradients& e) const {
#pragma unroll
    for (int i = 0; i < kPairs / 2; ++i)
      e[i] = ptx::cvt_pack<Item>(scores_[2 * i], scores_[2 * i + 1]);
  }

  /// A weight times a gradient has twice as many bits: the upper, in place of e, and the lower.
  __device__ __forceinline__ void weigh_gradients(const TokenInfo& tokens, Gradients& e,
                                                  Gradients& rest) const {
#pragma unroll
    for (int i = 0; i < kPairs / 2; ++i) {
      const float2 own = ptx::cvt_unpack<Item>(e[i]);
      const int token = token_of(2 * i);
      const float first = own.x * tokens.weight[token];
      const float second = own.y * tokens.weight[token + 1];
      e[i] = ptx::cvt_pack<Item>(first, second);
      const float2 upper = ptx::cvt_unpack<Item>(e[i]);
      rest[i] = ptx::cvt_pack<Item>(first - upper.x, second - upper.y);
    }
  }

  __device__ __forceinline__ void store(const Gradients& e, std::uint8_t* to) const {
#pragma unroll
    for (int i = 0; i < kPairs / 2; ++i) {
      const int key = 16 * warp_ + lane_ / 4 + i % 2 * 8;
      *reinterpret_cast<std::uint32_t*>(to + Traits::e_offset(key, token_of(2 * i))) = e[i];
    }
  }

  /// The warp's columns of d_index_q of all tokens.
  __device__ __forceinline__ void store_share(const TokenInfo& tokens,
                                              const common::backward::Shares& to,
                                              const float (&sums)[Traits::kPartDims / 2]) const {
    constexpr int kDims = Traits::kPartDims;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float own[1][kDims / 4];
#pragma unroll
      for (int i = 0; i < kDims / 4; ++i) own[0][i] = sums[i / 2 * 4 + 2 * half + i % 2];
      const common::backward::PackedShare<kDims> packed(own);
      const std::int64_t slot = tokens.slot[lane_ / 4 + 8 * half];
      if (slot >= 0) packed.store(to, slot, Traits::kIndexDim, warp_, lane_ % 4);
    }
  }

  /// Products become scores.
  __device__ __forceinline__ void mask(const TokenInfo& tokens, float scale_log2) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      scores_[i] = sees(tokens, i) ? scores_[i] * scale_log2 : common::kMinusInf;
  }

  Shared& shared_;
  Exchange* exchange_;
  const int warp_;  // of the team
  const int team_;
  const int lane_;
  float scores_[kPairs];   // later gradients
  float teacher_[kPairs];  // summed over query heads

 private:
  static constexpr float kSmallestNormal = 0x1p-126f;

  /// The token of a pair, and its key.
  __device__ __forceinline__ int token_of(int pair) const {
    return team_ * Traits::kOwnTokens + pair / 4 * 8 + common::fragment_column(lane_) + pair % 2;
  }
  __device__ __forceinline__ bool sees(const TokenInfo& tokens, int pair) const {
    return 16 * warp_ + lane_ / 4 + pair / 2 % 2 * 8 < tokens.limit[token_of(pair)];
  }
  /// Over the warp's keys, of lanes that share tokens.
  __device__ __forceinline__ static float sum_keys(float x) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) x += __shfl_xor_sync(common::kAllLanes, x, step);
    return x;
  }

  /// The weights of a token for this thread's two keys, which all lanes of its quad have, stay with
  /// the lane that has the token's scores.
  __device__ __forceinline__ void keep(int token, float first, float second) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (token_of(i) == token) teacher_[i] = i / 2 % 2 == 0 ? first : second;
    }
  }
};

}  // namespace msa::cuda::mma::index_loss
