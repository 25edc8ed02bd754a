// SPDX-License-Identifier: MIT
// Roles and shared memory of Hopper's kernels of the index loss: two consumer warpgroups, of 64
// keys each; three producer warps that find the tokens of steps, a stage each, and one that has the
// query rows of turns gathered.
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

struct Traits : mma::index_loss::Traits<kTile> {
  static constexpr int kSteps = 3;  // stages of the ring of steps: a producer warp each
  // As many as a thread has accumulators for: what comes around a product and its exponentials
  // comes once for twice the rows, and the other warpgroup multiplies meanwhile.
  static constexpr int kTurnRows = 128;
  static constexpr int kTurns = kTokens * kGroup / kTurnRows;  // of a step
  static constexpr int kTurnTokens = kTurnRows / kGroup;
  static constexpr int kTurnStages = 2 * kTurns;
  static constexpr int kCtaThreads = kThreads + 128;
  static constexpr int kConsumerRegisters = 216;
  static constexpr int kProducerRegisters = 72;
  static_assert(kThreads == 256 && 2 * kConsumerRegisters + kProducerRegisters <= 3 * 168,
                "registers of a CTA's warpgroups");
  static_assert(kTurns == 2 && kTurnTokens == 8,
                "column_of; a lane of a quad has two tokens of a turn");
  static constexpr int kTurnBytes = kTurnRows * kHeadDim * 2;

  struct Shared {
    alignas(1024) std::uint8_t k[kKeys * kHeadDim * 2];
    alignas(1024) std::uint8_t index_k[kKeys * kIndexDim * 2];
    alignas(1024) std::uint8_t q[kTurnStages][kTurnBytes];
    alignas(1024) std::uint8_t index_q[kSteps][kTokens * kIndexDim * 2];
    // What steps tell, in turn, and that a step's is there.
    alignas(256) Exchange exchanges[2];
    ptx::Mbarrier told[2];
    ptx::Mbarrier order[2];  // a warpgroup may multiply its next turn: the other has begun its own
    TokenInfo infos[kSteps];
    alignas(16) float offsets[kSteps]
                             [kTokens * kGroup];  // of scores: -lse; -inf: the row has no weights
    Sight sights[kSteps];                         // of the tokens
    int blind[kSteps];                            // whether some row has no weights
    int number;                                   // of the item
    common::backward::WorkItem item;
    RequestRecord request;
    Ring<kSteps> steps;
    Ring<kTurnStages> turns;
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

  /// Where the offset of a token's head lies in a step's: a lane of a quad has the two neighbours
  /// of both of the token's eight rows together.
  __device__ __forceinline__ static constexpr int offset_of(int token, int head) {
    return token * kGroup + head % 8 / 2 * 4 + head / 8 * 2 + head % 2;
  }

  /// The column of a step's token among the student's scores: the lane of a quad that ends up with
  /// the teacher's weights of a turn's token has it there.
  __device__ __forceinline__ static constexpr int column_of(int token) {
    return token / 8 * 8 + token % 4 * 2 + token / 4 % 2;
  }
};

}  // namespace msa::cuda::sm90::index_loss
