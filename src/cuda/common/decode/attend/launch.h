// SPDX-License-Identifier: MIT
// Decode attention from the host: what an instance is compiled for, what a launch tells it. Two
// kernels stand on the same roles: `attend` takes the rows of a batch, `mend` single rows that
// another kernel could not finish.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "cuda/common/decode/launch.h"
#include "cuda/common/peers/launch.h"

namespace msa::cuda::common::decode {

struct AttendConfig {
  Storage storage = Storage::Bf16;  // of queries, and what is multiplied
  int block = 128;                  // keys of a block
  int dim = 128;                    // of q, k and v
  Storage kv = storage;             // of keys and values: as queries, E4m3 or E2m1
  friend constexpr bool operator==(const AttendConfig&, const AttendConfig&) = default;
};

/// Where the blocks of a row come from.
enum class Blocks : int {
  All,     // dense: every visible block
  Listed,  // sparse: `lists`
  Scored,  // msa: selected from `select.orders`; written to `select.ids` where given
};

struct AttendParams {
  SelectParams select{};  // batch, records, and what a selection needs
  Lists lists{};
  Rows<const void> q{};  // [T, Hq, D]
  RowsOut to{};
  int heads_kv = 0;
  int group = 1;  // G
  int tiles = 1;  // head_tiles(group)
  Blocks blocks = Blocks::All;
  int splits = 1;        // CTAs along the blocks of a row
  int rehearsals = 0;    // CTAs, the first ones, that are there while scores are still computed
  float scale_log2 = 0;  // softmax scale times log2(e), positive
  // Merge scratch, where splits do not form a cluster: one slot a (row, KV head, tile of 16
  // query heads, split).
  float* partial_out = nullptr;     // [slots, 16, D], not normalised
  float2* partial_state = nullptr;  // [slots, 16]: maximum, sum
  unsigned* arrivals = nullptr;     // [rows x heads x tiles], zero before the launch
  Scales k_scales{};                // of codes in e4m3
  Scales v_scales{};
  GroupScales k_groups{};  // of codes in e2m1
  GroupScales v_groups{};
};

/// A row among the GPUs of one host, each of which has a part of its blocks
/// (attend/ranks_kernel.cuh).
struct RanksParams {
  int rank = 0;
  int ranks = 1;
  std::uint64_t timeout_ns = 0;     // 0: waits for ever
  std::uint32_t* counts = nullptr;  // meetings of each kind, as peers::meet counts them
  // Of each rank: what all of them send it, [ranks, T, Hi, k].
  peers::Candidate* inboxes[peers::kMaxRanks]{};
  // From what this rank writes as output and lse to where each rank wants it, in bytes.
  std::int64_t states[peers::kMaxRanks]{};
  // [T, num_forced], ids of the whole sequence, -1 where there is none; or none.
  const int* forced = nullptr;
  int num_forced = 0;
  const int* last_keys = nullptr;  // [T], local, the last key that a row sees; below 0: none
};

/// The same with where keys and values lie, as an instruction set is told.
template <class Keys>
struct AttendParamsOf : AttendParams {
  Keys k{};
  Keys v{};
};

/// Whole MSA of a rank's part: the batch says what candidates come from.
template <class Keys>
struct RanksAttendParamsOf : AttendParamsOf<Keys> {
  RanksParams among{};
};

/// Pairs that another kernel left: `attend` says what a row is, with splits = 1.
template <class Keys>
struct MendParamsOf {
  AttendParamsOf<Keys> attend{};
  Suspects suspects{};
};

/// Tiles of 16 query heads in a group.
constexpr int head_tiles(int group) { return (group + 15) / 16; }

/// Whether the splits of a row form a cluster and merge in shared memory.
__host__ __device__ constexpr bool clusters(int splits) {
  return splits == 2 || splits == 4 || splits == 8;
}

/// Whether they merge through partials in memory; `clustered`: where they can form clusters.
__host__ __device__ constexpr bool uses_partials(int splits, bool clustered) {
  return splits > 1 && !(clustered && clusters(splits));
}

/// Slots of partials for `rows` query rows.
constexpr std::int64_t partial_slots(std::int64_t rows, int heads_kv, int group, int splits,
                                     bool clustered) {
  return uses_partials(splits, clustered) ? rows * heads_kv * head_tiles(group) * splits : 0;
}

/// CTAs along a row's `max_entries` blocks.
int attend_splits(std::int64_t rows, int heads_kv, int group, std::int64_t max_entries,
                  int multiprocessors);

inline constexpr std::array kAttendInstances = {
    AttendConfig{.storage = Storage::Bf16, .block = 128, .dim = 128},
    AttendConfig{.storage = Storage::Bf16, .block = 64, .dim = 128},
    AttendConfig{.storage = Storage::Bf16, .block = 128, .dim = 64},
    AttendConfig{.storage = Storage::Bf16, .block = 64, .dim = 64},
    AttendConfig{.storage = Storage::F16, .block = 128, .dim = 128},
    AttendConfig{.storage = Storage::F16, .block = 64, .dim = 128},
    AttendConfig{.storage = Storage::F16, .block = 128, .dim = 64},
    AttendConfig{.storage = Storage::F16, .block = 64, .dim = 64},
    AttendConfig{.storage = Storage::Bf16, .block = 128, .dim = 128, .kv = Storage::E4m3},
    AttendConfig{.storage = Storage::Bf16, .block = 64, .dim = 128, .kv = Storage::E4m3},
    AttendConfig{.storage = Storage::F16, .block = 128, .dim = 128, .kv = Storage::E4m3},
    AttendConfig{.storage = Storage::F16, .block = 64, .dim = 128, .kv = Storage::E4m3},
    AttendConfig{.storage = Storage::Bf16, .block = 128, .dim = 128, .kv = Storage::E2m1},
    AttendConfig{.storage = Storage::Bf16, .block = 64, .dim = 128, .kv = Storage::E2m1},
    AttendConfig{.storage = Storage::F16, .block = 128, .dim = 128, .kv = Storage::E2m1},
    AttendConfig{.storage = Storage::F16, .block = 64, .dim = 128, .kv = Storage::E2m1},
};

/// Of them the first, which mending has, too: kernels that share tiles between rows, and leave some
/// to it, unpack four bits before.
inline constexpr std::size_t kMendInstances = kAttendInstances.size() - 4;
static_assert(kAttendInstances[kMendInstances - 1].kv != Storage::E2m1 &&
              kAttendInstances[kMendInstances].kv == Storage::E2m1);

/// Of them those that ranks which share a sequence have, too: others select and attend by launches
/// of their own.
inline constexpr std::array kRanksInstances = {kAttendInstances[0], kAttendInstances[4]};

/// Where the instance stands among `instances`.
std::size_t find_instance(const AttendConfig& config, std::span<const AttendConfig> instances);

}  // namespace msa::cuda::common::decode
