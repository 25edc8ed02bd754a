// SPDX-License-Identifier: MIT
// Who sees what: positions, visible keys and blocks, forced blocks. Every formula of the contract
// about visibility stands here once, for all CPU-side code. Positions and block ids are global
// (shards); keys and rows are local to a request.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace msa::core {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

/// Largest integer not above a / b, for negative a too.
constexpr std::int64_t floor_div(std::int64_t a, std::int64_t b) {
  return a >= 0 ? a / b : -((-a + b - 1) / b);
}

/// Half-open range of blocks or keys.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  constexpr bool empty() const { return begin >= end; }
  constexpr std::int64_t size() const { return std::max<std::int64_t>(0, end - begin); }
  constexpr bool contains(std::int64_t x) const { return x >= begin && x < end; }
  friend bool operator==(const Range&, const Range&) = default;
};

inline constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

/// One request of a batch, with all that visibility needs.
struct Request {
  std::int64_t q_begin = 0;  // first row of q
  std::int64_t seqlen_q = 0;
  std::int64_t k_begin = 0;     // first row of ragged keys; 0 when paged
  std::int64_t seqlen_k = 0;    // keys that this call holds
  std::int64_t offset = 0;      // global position of query row 0; may be negative
  std::int64_t key_offset = 0;  // global position of key 0, a multiple of block_size
  std::int64_t total_k = 0;     // length of the whole sequence; kNoLimit where nobody said
  std::int64_t block_size = 128;
  bool causal = true;

  /// Global position of the last key anywhere that query row i may see; negative: none.
  constexpr std::int64_t last_position(std::int64_t i) const {
    const std::int64_t end = total_k == kNoLimit ? kNoLimit : total_k - 1;
    return causal ? std::min(offset + i, end) : end;
  }
  /// Local keys that query row i sees: 0 .. visible_keys(i) - 1.
  constexpr std::int64_t visible_keys(std::int64_t i) const {
    const std::int64_t last = last_position(i);
    if (last == kNoLimit) return seqlen_k;
    return std::clamp<std::int64_t>(last - key_offset + 1, 0, seqlen_k);
  }
  /// Global ids of this request's blocks, visible or not.
  constexpr Range blocks() const {
    const std::int64_t first = key_offset / block_size;
    return {first, first + ceil_div(seqlen_k, block_size)};
  }
  /// Global ids of the blocks that query row i sees here.
  constexpr Range visible_blocks(std::int64_t i) const {
    const std::int64_t first = key_offset / block_size;
    return {first, first + ceil_div(visible_keys(i), block_size)};
  }
  /// Whether block `id` is forced for query row i: among the last `local` or the first `init`
  /// visible blocks of the whole sequence. Says nothing about whether the block lies in this shard.
  constexpr bool is_forced(std::int64_t i, std::int64_t id, std::int64_t local,
                           std::int64_t init) const {
    const std::int64_t last = last_position(i);
    if (last < 0) return false;
    const std::int64_t last_block = last / block_size;
    return id <= last_block && (id > last_block - local || id < init);
  }
  /// Ids that a block list may hold: 0 .. legal_blocks() - 1.
  constexpr std::int64_t legal_blocks() const {
    return total_k == kNoLimit ? kNoLimit : ceil_div(total_k, block_size);
  }
};

}  // namespace msa::core
