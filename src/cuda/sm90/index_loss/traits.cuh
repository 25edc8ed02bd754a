// SPDX-License-Identifier: MIT
// Roles and shared memory of Hopper's kernels of the index loss: two teams of consumers, each of
// two warpgroups with 64 keys; three producer warps that find the tokens of steps, a stage each,
// and one that has the query rows of turns gathered.
#pragma once

#include "cuda/mma/index_loss/traits.cuh"
#include "cuda/sm90/index_loss/launch.h"
#include "cuda/sm90/ptx/barrier.cuh"
#include "cuda/sm90/tile/descriptor.cuh"
#include "cuda/sm90/tile/meeting.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/tile/sight.cuh"

namespace msa::cuda::sm90::index_loss {

using mma::index_loss::kTokens;
using mma::index_loss::kTurnRows;

struct Traits : mma::index_loss::Traits<kTile> {
  // Each of two warpgroups, of 64 keys each. A team has half of a step's tokens, and half of the
  // columns of d_index_k: of all, a thread could not hold the sums beside three others' on its
  // scheduler.
  static constexpr int kTeams = 2;
  static constexpr int kOwnTokens = kTokens / kTeams;
  static constexpr int kOwnDims = kIndexDim / kTeams;
  static constexpr int kTeamThreads = 32 * kWarps;
  static constexpr int kThreads = kTeams * kTeamThreads;  // that consume
  static constexpr int kCtaThreads = kThreads + 128;
  static constexpr int kFinders = 3;           // producer warps, each with every third step
  static constexpr int kSteps = 2 * kFinders;  // stages of their ring
  static constexpr int kTurns = kOwnTokens * kGroup / kTurnRows;  // of a step, of a team
  static constexpr int kTurnTokens = kTurnRows / kGroup;
  static constexpr int kTurnStages = 3;  // of a team
  static constexpr int kConsumerRegisters = 104;
  static constexpr int kProducerRegisters = 64;
  static_assert(kTeamThreads == 256 && 4 * kConsumerRegisters + kProducerRegisters <= 5 * 96,
                "registers of a CTA's warpgroups");
  static_assert(kTurns == 2 && kTurnTokens == 4,
                "column_of; a lane of a quad has a token of a turn");
  static_assert(kOwnTokens * kPanelRowBytes == kSwizzleAtomBytes, "index_q of a team");
  static_assert(kOwnDims == kPanelItems, "a team's columns of d_index_k are a panel");
  static constexpr int kTurnBytes = kTurnRows * kHeadDim * 2;

  struct Exchange : mma::index_loss::Traits<kTile>::Exchange {
    alignas(256) std::uint8_t weighted[2][kKeys * kTokens * 2];  // e: upper bits, and lower
  };

  struct Shared {
    alignas(1024) std::uint8_t k[kKeys * kHeadDim * 2];
    alignas(1024) std::uint8_t index_k[kKeys * kIndexDim * 2];
    alignas(1024) std::uint8_t q[kTeams][kTurnStages][kTurnBytes];
    alignas(1024) std::uint8_t index_q[kSteps][kTokens * kIndexDim * 2];
    // What steps tell, in turn, and that a step's is there.
    alignas(256) Exchange exchanges[2];
    ptx::Mbarrier told[2];
    TokenInfo infos[kSteps];
    float offsets[kSteps][kTokens * kGroup];  // of scores: -lse; -inf: the row has no weights
    Sight sights[kSteps];                     // of the tokens
    int blind[kSteps];                        // whether some row has no weights
    int number;                               // of the item
    common::backward::WorkItem item;
    RequestRecord request;
    Ring<kSteps> steps;
    Ring<kTurnStages> turns[kTeams];
    Meeting meeting;
  };
  // Dynamic shared memory is not aligned to 1024.
  static constexpr int kSharedBytes = sizeof(Shared) + kSwizzleAtomBytes;
  static_assert(kSharedBytes <= 232448, "227 KB a CTA");

  static_assert(sizeof(Exchange) % 256 == 0, "each e begins as its swizzle does");

  /// The consumers meet.
  __device__ __forceinline__ static void sync() { ptx::bar_sync(1, kThreads); }

  __device__ __forceinline__ static constexpr int e_offset(int key, int token) {
    return swizzled_row_16(key, token);
  }

  __device__ __forceinline__ static int steps_of(const common::backward::WorkItem& item) {
    return (item.count + kTokens - 1) / kTokens;
  }

  /// The column of a step's token among the student's scores: the lane of a quad that ends up with
  /// the teacher's weights of a turn's token has it there.
  __device__ __forceinline__ static constexpr int column_of(int token) {
    return token / 8 * 8 + token % 4 * 2 + token / 4 % 2;
  }
};

}  // namespace msa::cuda::sm90::index_loss
