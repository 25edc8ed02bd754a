// SPDX-License-Identifier: MIT
// Lists of block ids: independent ones, and slowly changing ones for the drift regime.
#include "testkit/block_lists.h"

#include <algorithm>

#include "testkit/random.h"

namespace msa::testkit {

namespace {

constexpr std::uint64_t kListStream = 200;
// A slot keeps its block for so many tokens: 14 free slots x 7 steps / 16 = 6 new blocks in 8
// neighbouring queries.
constexpr std::int64_t kHold = 16;

/// Counters of one row of one head: 2^12 of them.
std::uint64_t row_counter(const Request& request, std::int64_t position, std::int64_t head) {
  return (((static_cast<std::uint64_t>(request.index) << 28) +
           static_cast<std::uint64_t>(position)) *
              64 +
          static_cast<std::uint64_t>(head))
         << 12;
}

/// `count` different ids below `bound` (Floyd's method), behind those that the list holds already;
/// all below `bound`.
void add_distinct(const Stream64& random, std::uint64_t counter, std::int64_t count,
                  std::int64_t bound, std::vector<std::int32_t>& list) {
  const auto first = static_cast<std::ptrdiff_t>(list.size());
  for (std::int64_t j = bound - count; j < bound; ++j) {
    auto id = static_cast<std::int32_t>(random.below(counter++, j + 1));
    if (std::find(list.begin() + first, list.end(), id) != list.end()) {
      id = static_cast<std::int32_t>(j);
    }
    list.push_back(id);
  }
}

/// Slot 0 stays on block 0; slot s draws among the ids that are s modulo the number of slots, so no
/// two ever meet.
void add_drifting(const Stream64& random, const Request& request, std::int64_t position,
                  std::int64_t head, std::int64_t slots, std::vector<std::int32_t>& list) {
  for (std::int64_t slot = 0; slot < slots; ++slot) {
    const std::int64_t shifted = position + slot * kHold / slots;
    const std::int64_t start =
        std::max<std::int64_t>(0, shifted - shifted % kHold - slot * kHold / slots);
    const std::int64_t free_blocks = start / request.block_size;  // those before the local one
    const std::int64_t choices = ceil_div(std::max<std::int64_t>(0, free_blocks - slot), slots);
    std::int64_t choice = 0;
    if (slot > 0 && choices > 0) {
      const std::uint64_t counter = row_counter(request, shifted / kHold, head);
      choice = random.below(counter + static_cast<std::uint64_t>(slot), choices);
    }
    list.push_back(static_cast<std::int32_t>(slot + choice * slots));
  }
}

}  // namespace

std::int64_t legal_blocks(const Request& request) {
  if (request.total_k) return ceil_div(*request.total_k, request.block_size);
  return ceil_div(request.key_offset + request.seqlen_k, request.block_size);
}

std::vector<std::int32_t> block_list(const Case& spec, const Request& request, std::int64_t i,
                                     std::int64_t head) {
  const Stream64 random(spec.seed, kListStream);
  const std::int64_t legal = legal_blocks(request);
  const std::int64_t position = request.offset + i;
  std::int64_t visible = legal;  // of the whole sequence, wherever its shards lie
  if (request.causal)
    visible = std::clamp<std::int64_t>(ceil_div(position + 1, request.block_size), 0, legal);
  const std::uint64_t counter = row_counter(request, std::max<std::int64_t>(position, 0), head);
  std::vector<std::int32_t> list;
  if (spec.partial_lists) {
    const std::int64_t most = std::min(spec.topk, legal);
    add_distinct(random, counter + 1, random.below(counter, most + 1), legal, list);
  } else if (visible <= spec.topk) {
    for (std::int64_t id = 0; id < visible; ++id) list.push_back(static_cast<std::int32_t>(id));
  } else {
    if (spec.regime == Regime::Drift && request.causal && spec.topk > 1) {
      // A query may stand behind the last key.
      const std::int64_t last_seen = std::min(position, visible * request.block_size - 1);
      add_drifting(random, request, last_seen, head, spec.topk - 1, list);
    } else {
      add_distinct(random, counter + 1, spec.topk - 1, visible - 1, list);
    }
    list.push_back(static_cast<std::int32_t>(visible - 1));
  }
  if (spec.order == Order::Shuffled) {
    for (std::size_t n = list.size(); n > 1; --n) {
      std::swap(list[n - 1], list[random.below(counter + 2048 + n, static_cast<std::int64_t>(n))]);
    }
  } else {
    std::sort(list.begin(), list.end());
    if (spec.order == Order::Descending) std::reverse(list.begin(), list.end());
  }
  return list;
}

double blocks_per_8(const Tensor& block_ids, const Batch& batch) {
  constexpr std::int64_t kNeighbours = 8;
  const std::int64_t requests = batch.cu_seqlens_q.shape[0] - 1;
  const std::int64_t heads = block_ids.shape[1], topk = block_ids.shape[2];
  std::int64_t groups = 0, distinct = 0;
  for (std::int64_t b = 0; b < requests; ++b) {
    const std::int64_t begin = int_at(batch.cu_seqlens_q, b),
                       end = int_at(batch.cu_seqlens_q, b + 1);
    const std::int64_t whole = (end - begin) / kNeighbours;
    groups += whole * heads;
#pragma omp parallel for schedule(static) reduction(+ : distinct) if (whole > 64)
    for (std::int64_t g = 0; g < whole; ++g) {
      std::vector<std::int32_t> ids;
      for (std::int64_t h = 0; h < heads; ++h) {
        ids.clear();
        for (std::int64_t i = 0; i < kNeighbours; ++i) {
          for (std::int64_t s = 0; s < topk; ++s) {
            const std::int32_t id = int_at(block_ids, begin + g * kNeighbours + i, h, s);
            if (id == -1) break;
            ids.push_back(id);
          }
        }
        std::sort(ids.begin(), ids.end());
        distinct += std::unique(ids.begin(), ids.end()) - ids.begin();
      }
    }
  }
  return groups == 0 ? 0.0 : static_cast<double>(distinct) / static_cast<double>(groups);
}

}  // namespace msa::testkit
