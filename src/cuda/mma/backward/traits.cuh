// SPDX-License-Identifier: MIT
// Tile sizes and shared memory of the backward kernel, derived from one Config.
#pragma once

#include "cuda/common/storage.cuh"
#include "cuda/mma/backward/config.h"
#include "cuda/mma/ptx.cuh"

namespace msa::cuda::mma::backward {

template <Config cfg>
struct Traits {
  static constexpr Config kConfig = cfg;
  using Item = common::ItemOf<cfg.storage>;
  static constexpr int kHeadDim = cfg.head_dim;
  static constexpr int kKeys = cfg.keys;
  static constexpr int kRows = cfg.rows;
  static constexpr int kWarps = kKeys / 16;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kPanels = kHeadDim / 64;  // of 128 bytes a row
  // dq of a step: a warp has 32 rows and a part of the columns.
  static constexpr int kRowGroups = kRows / 32;
  static constexpr int kParts = kWarps / kRowGroups;
  static constexpr int kPartDims = part_dims(cfg);
  static_assert(kRows == 32 || kRows == 64, "a row of dS is a swizzled row, or half of one");
  static_assert(kHeadDim == 64 || kHeadDim == 128, "one or two panels of 64 columns");
  static_assert(kParts * kRowGroups == kWarps && kPartDims >= 16, "a warp multiplies 16 columns");

  static constexpr bool kQueries = true;      // dq may be wanted, beside dk and dv or alone
  static constexpr int kWeighedRows = kRows;  // whose weights wait in registers at a time

  /// Threads that multiply meet.
  __device__ __forceinline__ static void sync() { __syncthreads(); }

  /// What is known of the rows of a step.
  struct RowInfo {
    std::int64_t share[kRows];  // row of dq's shares; -1: behind the item's last
    float lse[kRows];
    float delta[kRows];
    int row[kRows];    // of q
    int head[kRows];   // of q
    int limit[kRows];  // keys of the tile that it sees, or fewer than 1; before it is told, the
                       // place of the tile's block in the token's list
  };

  struct Shared {
    alignas(128) std::uint8_t k[kKeys * kHeadDim * 2];
    alignas(128) std::uint8_t v[kKeys * kHeadDim * 2];
    alignas(128) std::uint8_t q[2][kRows * kHeadDim * 2];
    alignas(128) std::uint8_t dout[2][kRows * kHeadDim * 2];
    alignas(128) std::uint8_t ds[kKeys * kRows * 2];  // a row a key
    RowInfo infos[kRowInfos];
    float rest[kWarps][kRows];  // of a warp's keys: what rounding took from dS
    float mean[kHeadDim];       // of the tile's keys; 0 where they are not alike
    int alike;                  // whether all keys are nearer to their mean than to 0
    // Registers are few: what a step seldom asks for stays here.
    int number;  // of the item
    common::backward::WorkItem item;
    RequestRecord request;
  };
  static constexpr std::size_t kSharedBytes = shared_bytes(cfg);
  static_assert(sizeof(Shared) <= kSharedBytes, "what planning counts with");
};

}  // namespace msa::cuda::mma::backward
