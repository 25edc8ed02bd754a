// SPDX-License-Identifier: MIT
// Merges of what GPUs of one host wrote, each into a box that all of them can read. Both are
// barriers of all ranks, and are launched in turn: choose, join, choose, ...
#pragma once

#include <cstdint>
#include <span>

#include "msa/tensor.h"

namespace msa::core {

inline constexpr std::int64_t kMaxRanks = 63;

/// Where the ranks meet; addresses as this rank's GPU sees them.
struct Peers {
  std::int64_t rank = 0;
  std::int64_t ranks = 1;
  std::span<void* const> boxes{};  // what each rank wrote
  std::span<void* const> pads{};   // of each rank: 2 * ranks + 2 words, 0 at first
  std::int64_t timeout_ms = 0;     // of a barrier, which then ends in an error of the GPU; 0: none
};

/// merge_selections. Box: i32 [2, T, H, k], ids and the bits of their scores.
struct ChooseCall {
  Peers peers{};
  bool dealt = false;  // ids in boxes are local: block l of rank n is block l * ranks + n
  std::int64_t first_blocks = 0;  // and count behind so many first blocks of the sequence
  Tensor forced{};     // i32 [T, F], in: ids of the whole sequence, chosen anyway; or none
  Tensor block_ids{};  // i32 [T, H, k]
  Tensor own_ids{};    // likewise, where dealt: those of this rank, local; or none
};

/// merge_states. Box: f32 [T, H, Dv + 4], a row's lse behind its output.
struct JoinCall {
  Peers peers{};
  Tensor out{};  // f32, f16 or bf16 [T, H, Dv]
  Tensor lse{};  // f32 [T, H], or none
};

/// Throw what is wrong with a call.
void validate(const ChooseCall& call);
void validate(const JoinCall& call);

}  // namespace msa::core
