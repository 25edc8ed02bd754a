// SPDX-License-Identifier: MIT
// merge_selections and merge_states of what GPUs of one host wrote, read where it lies. Both begin
// with a meeting of all ranks, and are launched in turn: choose, join, choose, ...
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/common/merge_states/launch.h"
#include "cuda/params.h"

namespace msa::cuda::common::peers {

inline constexpr int kMaxRanks = 63;
inline constexpr int kMaxForced = 256;

enum class Kind : std::uint32_t { Choose, Join };

/// What one rank tells another of a candidate. Each half is written at once, with the number of the
/// meeting: whoever reads the number has what came with it, and nobody clears it.
struct alignas(16) Candidate {
  int id;  // of the whole sequence, below 0: none
  std::uint32_t number;
  float score;
  std::uint32_t number_again;
};

struct Meeting {
  // Of each rank, as this GPU sees them: words that ranks arrive at, [2, ranks], then the number of
  // meetings of each kind, which the rank itself counts.
  std::uint32_t* pads[kMaxRanks]{};
  int rank = 0;
  int ranks = 1;
  Kind kind = Kind::Choose;
  std::uint64_t timeout_ns = 0;  // 0: waits for ever
};

struct ChooseParams {
  Meeting meeting{};
  const int* boxes[kMaxRanks]{};  // of each rank: ids, then scores, [2, T, H, k]
  const int* forced = nullptr;    // [T, num_forced], the first -1 ends a row; or none
  int num_forced = 0;
  int rows = 0;  // T * H
  int heads = 1;
  int k = 16;
  int dealt = 0;         // 1: ids in boxes are local, block l of rank n is block l * ranks + n
  int first_blocks = 0;  // and count from the first block of a rank behind so many of the sequence
  int* ids = nullptr;    // [T, H, k], of the whole sequence
  int* own = nullptr;    // likewise, those that lie on this rank, local; or none
};

void launch_choose(const ChooseParams& params, cudaStream_t stream);

struct JoinParams {
  Meeting meeting{};
  merge_states::Params states{};  // parts in f32; out in f32, f16 or bf16
};

void launch_join(const JoinParams& params, cudaStream_t stream);

/// What a step's layers share, of sequences of one row each whose blocks are dealt round robin.
struct DealParams {
  int rank = 0;
  int ranks = 1;
  int rows = 0;
  std::int64_t columns = 0;  // of page tables
  std::int64_t columns_per_block = 1;
  int block_size = 128;
  int init_blocks = 0;
  int local_blocks = 1;
  const int* seqlens_k = nullptr;   // [T], of the whole sequences
  const int* page_table = nullptr;  // [T, columns], of this rank
  int* candidates = nullptr;        // [T], keys here between the first blocks and the last ones
  int* last_keys = nullptr;         // [T], the last key here that a row sees, or -1
  int* forced = nullptr;            // [T, init_blocks + local_blocks], -1 behind the last; or none
  int* pages = nullptr;             // [T, columns], 0 behind what the row sees
};

void launch_deal(const DealParams& params, cudaStream_t stream);

}  // namespace msa::cuda::common::peers
