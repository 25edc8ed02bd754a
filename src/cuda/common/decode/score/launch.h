// SPDX-License-Identifier: MIT
// Decode scoring from the host: what an instance is compiled for, what a launch tells it.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "cuda/common/decode/launch.h"

namespace msa::cuda::common::decode {

/// Bytes of the scales of a key's groups.
inline constexpr int kRowScales = 128 / kGroupItems;

struct ScoreConfig {
  Storage storage = Storage::Bf16;  // of index queries
  int tiles = 1;                    // columns (tokens x heads of one index-key head), in tiles of 8
  int dim = 128;                    // 128 or 64
  Storage keys = storage;           // of index keys: as queries, E4m3 or E2m1; I8: of their filter
  bool alone = false;               // no CTA of attention needs room beside it
  friend constexpr bool operator==(const ScoreConfig&, const ScoreConfig&) = default;
};

/// How the warps of a CTA share steps. Teams take turns: most of a step is waiting for one thing
/// after the other, one of codes is there in half the time, one of four bits in a quarter of it. A
/// step of these is there before one warp has asked for the next: each team has a producer of its
/// own then, as if it were a CTA. Of many columns the registers hold one part's keys.
struct ScoreTeams {
  int teams = 1;
  int warps = 4;  // of a team
  int producers = 1;
  int ring_bytes = 0;
};

/// The instance for `columns` of them, at most kMaxColumns.
constexpr int score_tiles(std::int64_t columns) { return columns <= 8 ? 1 : columns <= 16 ? 2 : 4; }

struct ScoreParams {
  BatchParams batch{};
  const RequestRecord* records = nullptr;  // [B]
  Rows<const void> index_q{};              // [T, Hi, Di]
  int heads = 0;                           // Hi
  int heads_k = 1;                         // Hik
  int ctas = 1;                            // that share the keys of one index-key head
  unsigned* claims = nullptr;              // [Hik], zero before the launch
  Slots<float> scores{};                   // [T, Hi, blocks]: the caller's, or scratch
  bool orders = false;                     // for a selection: rows of orders (decode/order.cuh)
  Scales k_scales{};                       // of index keys in codes
  GroupScales k_groups{};                  // of index keys in four bits
  FilterBounds<const float> bounds{};      // of a filter
  // With a filter: orders between which a block's lies, upper ones of each of its parts
  // (kPartKeys); `scores` then says what is forced.
  Rows<std::uint32_t> lower{};  // [T, Hi, blocks]
  Rows<std::uint32_t> upper{};  // [T, Hi, blocks, parts]
};

/// The same with where keys or the codes of their filter lie, as an instruction set is told.
template <class Keys>
struct ScoreParamsOf : ScoreParams {
  Keys keys{};
};

/// Whether the scales of the groups of a page and head lie side by side, at multiples of 16 bytes:
/// the copy engine brings those of a box. Ragged rows may begin anywhere.
__host__ __device__ inline bool groups_are_dense(const GroupScales& groups, int page_size,
                                                 int heads_k) {
  const std::int64_t stride_head = heads_k > 1 ? groups.stride_head : 0;  // else of no meaning
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(groups.data));
  return page_size != 0 && groups.stride_token == kRowScales &&
         (address | groups.stride_page | stride_head) % 16 == 0;
}

/// CTAs that share the keys of one index-key head: one an SM for all heads, no more than steps.
int score_ctas(std::int64_t batch, std::int64_t max_seqlen_k, int heads_k, int multiprocessors);

inline constexpr std::array kScoreInstances = {
    ScoreConfig{.storage = Storage::Bf16, .tiles = 1, .dim = 128},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 2, .dim = 128},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 4, .dim = 128},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 1, .dim = 64},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 2, .dim = 64},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 4, .dim = 64},
    ScoreConfig{.storage = Storage::F16, .tiles = 1, .dim = 128},
    ScoreConfig{.storage = Storage::F16, .tiles = 2, .dim = 128},
    ScoreConfig{.storage = Storage::F16, .tiles = 4, .dim = 128},
    ScoreConfig{.storage = Storage::F16, .tiles = 1, .dim = 64},
    ScoreConfig{.storage = Storage::F16, .tiles = 2, .dim = 64},
    ScoreConfig{.storage = Storage::F16, .tiles = 4, .dim = 64},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 1, .dim = 128, .keys = Storage::E4m3},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 2, .dim = 128, .keys = Storage::E4m3},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 4, .dim = 128, .keys = Storage::E4m3},
    ScoreConfig{.storage = Storage::F16, .tiles = 1, .dim = 128, .keys = Storage::E4m3},
    ScoreConfig{.storage = Storage::F16, .tiles = 2, .dim = 128, .keys = Storage::E4m3},
    ScoreConfig{.storage = Storage::F16, .tiles = 4, .dim = 128, .keys = Storage::E4m3},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 1, .dim = 128, .keys = Storage::E2m1},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 2, .dim = 128, .keys = Storage::E2m1},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 4, .dim = 128, .keys = Storage::E2m1},
    ScoreConfig{.storage = Storage::F16, .tiles = 1, .dim = 128, .keys = Storage::E2m1},
    ScoreConfig{.storage = Storage::F16, .tiles = 2, .dim = 128, .keys = Storage::E2m1},
    ScoreConfig{.storage = Storage::F16, .tiles = 4, .dim = 128, .keys = Storage::E2m1},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 1, .dim = 128, .keys = Storage::I8},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 2, .dim = 128, .keys = Storage::I8},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 4, .dim = 128, .keys = Storage::I8},
    ScoreConfig{.storage = Storage::F16, .tiles = 1, .dim = 128, .keys = Storage::I8},
    ScoreConfig{.storage = Storage::F16, .tiles = 2, .dim = 128, .keys = Storage::I8},
    ScoreConfig{.storage = Storage::F16, .tiles = 4, .dim = 128, .keys = Storage::I8},
};

/// Where the instance stands among them.
std::size_t find_instance(const ScoreConfig& config, std::span<const ScoreConfig> instances);

}  // namespace msa::cuda::common::decode
