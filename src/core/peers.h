// SPDX-License-Identifier: MIT
// Decode over GPUs of one host, each of which has a part of the blocks. Merges of what all wrote,
// each into a box that all of them can read, are barriers of all ranks, and are launched in turn:
// choose, join, choose, ... Attention may stand for choose: it exchanges candidates by itself.
#pragma once

#include <cstdint>
#include <span>

#include "msa/msa.h"

namespace msa::core {

inline constexpr std::int64_t kMaxRanks = 63;
inline constexpr std::int64_t kStatePad = 4;  // columns behind an output in its box: lse, nothing

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

/// msa_attention of this rank's part: what the plan chooses are candidates, of blocks dealt round
/// robin and none of them forced; attended to is what all ranks choose among theirs. The peers'
/// boxes are [ranks, T, Hi, k] of 16 bytes, 0 at first: each rank's candidates. Output and lse,
/// f32, are this rank's part of its box of states, [ranks, T, Hq, Dv + 4], and go to all ranks.
struct AttendCall {
  Peers peers{};
  std::span<void* const> states{};  // of each rank
  Tensor forced{};     // i32 [T, F]: ids of the whole sequence that are chosen anyway; or none
  Tensor last_keys{};  // i32 [T]: local, of the last key that each row sees; below 0: none
};

/// What a step's layers share, of sequences of one row each and blocks dealt round robin.
struct DealCall {
  std::int64_t rank = 0;
  std::int64_t ranks = 1;
  std::int64_t block_size = 128;
  std::int64_t init_blocks = 0;
  std::int64_t local_blocks = 1;
  Tensor seqlens_k{};   // i32 [T], in: of the whole sequences
  Tensor page_table{};  // i32 [T, C], in: this rank's pages
  Tensor candidates{};  // i32 [T]: keys here that candidates come from
  Tensor last_keys{};   // i32 [T]: the last key here that a row sees, or -1
  Tensor forced{};      // i32 [T, F], F = init_blocks + local_blocks, -1 behind the last; or none
  Tensor pages{};       // i32 [T, C]: the pages that the row sees, 0 behind them
  std::int64_t columns_per_block = 1;
};

/// Throw what is wrong with a call.
void validate(const ChooseCall& call);
void validate(const JoinCall& call);
void validate(const DealCall& call);
/// Beside validate_call.
void validate(const AttendCall& call, const Problem& problem, const Operands& operands);

/// run() of a plan of msa_attention, among ranks.
void attend(const Plan& plan, const Operands& operands, const AttendCall& call, Workspace workspace,
            Stream stream);

}  // namespace msa::core
