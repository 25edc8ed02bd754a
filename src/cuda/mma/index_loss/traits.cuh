// SPDX-License-Identifier: MIT
// Tile sizes and shared memory of the kernels of the index loss, derived from one Config.
#pragma once

#include "cuda/common/storage.cuh"
#include "cuda/mma/index_loss/config.h"
#include "cuda/mma/ptx.cuh"

namespace msa::cuda::mma::index_loss {

template <Config cfg>
struct Traits {
  static constexpr Config kConfig = cfg;
  using Item = common::ItemOf<cfg.storage>;
  static constexpr int kHeadDim = cfg.head_dim;
  static constexpr int kIndexDim = cfg.index_dim;
  static constexpr int kKeys = cfg.keys;
  static constexpr int kWarps = kKeys / 16;
  static constexpr int kThreads = 32 * kWarps;
  // That share registers. Left to itself the compiler makes room for three where an index dim of 64
  // leaves shared memory for them, and spills.
  static constexpr int kCtasPerSm = 2;
  static constexpr int kPartDims = part_dims(cfg);
  // Tokens of a step that a warp compares, and columns of d_index_k that it adds up: all.
  static constexpr int kOwnTokens = kTokens;
  static constexpr int kOwnDims = kIndexDim;
  static_assert(kHeadDim == 64 || kHeadDim == 128, "one or two panels of 64 columns");
  static_assert(kIndexDim == 64 || kIndexDim == 128, "one or two panels of 64 columns");
  static_assert(kPartDims >= 16, "a warp multiplies 16 columns");

  /// What is known of the tokens of a step.
  struct TokenInfo {
    std::int64_t slot[kTokens];  // of shares; -1: behind the item's last
    float student[kTokens];      // the whole logarithm, base 2
    float weight[kTokens];
    int row[kTokens];    // of q; -1: behind the item's last
    int place[kTokens];  // of the tile's block in the token's list
    int limit[kTokens];  // keys of the tile that it sees, or fewer than 1
  };

  /// Where e of a key and a token lies.
  __device__ __forceinline__ static constexpr int e_offset(int key, int token) {
    return (key * kTokens + token) * 2;
  }

  /// What the warps of a step tell each other.
  struct Exchange {
    alignas(128) std::uint8_t e[kKeys * kTokens * 2];  // a row a key
    float of_warps[2][kWarps][kTokens];                // sums, or maxima, of each warp's keys
  };

  struct Shared {
    alignas(128) std::uint8_t k[kKeys * kHeadDim * 2];
    alignas(128) std::uint8_t index_k[kKeys * kIndexDim * 2];
    alignas(128) std::uint8_t q[2][kTurnRows * kHeadDim * 2];
    alignas(128) std::uint8_t index_q[2][kTokens * kIndexDim * 2];
    Exchange exchange;
    TokenInfo infos[kTokenInfos];
    float lse[2][kTurnRows];  // -inf: the row has no weights
    int number;               // of the item
    common::backward::WorkItem item;
    RequestRecord request;
  };
  static constexpr std::size_t kSharedBytes = shared_bytes(cfg);
  static_assert(sizeof(Shared) <= kSharedBytes, "what planning counts with");
};

}  // namespace msa::cuda::mma::index_loss
