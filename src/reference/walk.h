// SPDX-License-Identifier: MIT
// Who is walked over: requests, and the keys that a row attends to. Rows of padding are a last
// request without keys, so that they need no case of their own.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/call.h"
#include "core/contents.h"
#include "core/geometry.h"
#include "core/host_tensor.h"
#include "msa/problem.h"

namespace msa::reference {

inline constexpr double kInf = std::numeric_limits<double>::infinity();

// Calls visit(request, b) for every request, then for the padding rows.
template <class Visit>
void for_each_request(const Problem& p, const core::Call& call, const Visit& visit) {
  const std::int64_t requests = core::num_requests(call);
  std::int64_t k_begin = 0;
  std::int64_t q_end = 0;
  for (std::int64_t b = 0; b < requests; ++b) {
    const core::Request request = core::read_request(p, call, b, k_begin);
    visit(request, b);
    k_begin += request.seqlen_k;
    q_end = request.q_begin + request.seqlen_q;
  }
  const std::int64_t padding = core::num_query_rows(call) - q_end;
  visit(core::Request{.q_begin = q_end, .seqlen_q = padding, .block_size = p.selection.block_size},
        requests);
}

// Local keys of block `id` that row i sees.
inline core::Range visible_keys(const core::Request& r, std::int64_t i, std::int64_t id) {
  const std::int64_t begin = r.block_size * id - r.key_offset;
  const core::Range all{0, r.visible_keys(i)};
  return {std::max(begin, all.begin), std::min(begin + r.block_size, all.end)};
}

// The keys that one row attends to, as a short list of ranges.
struct KeyList {
  std::array<core::Range, kMaxTopk> ranges{};
  std::size_t count = 0;

  std::int64_t size() const {
    std::int64_t sum = 0;
    for (std::size_t n = 0; n < count; ++n) sum += ranges[n].size();
    return sum;
  }
  template <class Visit>
  void for_each(const Visit& visit) const {
    std::size_t position = 0;
    for (std::size_t n = 0; n < count; ++n) {
      for (std::int64_t key = ranges[n].begin; key < ranges[n].end; ++key) visit(key, position++);
    }
  }
};

inline KeyList all_keys(const core::Request& r, std::int64_t i) {
  KeyList list;
  list.ranges[list.count++] = {0, r.visible_keys(i)};
  return list;
}

inline KeyList listed_keys(const core::Call& call, const core::Request& r, std::int64_t i,
                           std::int64_t h) {
  KeyList list;
  const Tensor& ids = call.block_ids_in;
  for (std::int64_t slot = 0; slot < ids.shape[2]; ++slot) {
    const std::int64_t id = core::read_i32(ids, r.q_begin + i, h, slot);
    if (id == -1) break;
    if (r.visible_blocks(i).contains(id)) list.ranges[list.count++] = visible_keys(r, i, id);
  }
  return list;
}

/// Whether row i sees the key and, where there are lists, lists its block.
inline bool attends(const core::Call& call, const core::Request& r, std::int64_t i, std::int64_t h,
                    std::int64_t key) {
  if (key >= r.visible_keys(i)) return false;
  const Tensor& ids = call.block_ids_in;
  if (!ids) return true;
  const std::int64_t block = (key + r.key_offset) / r.block_size;
  for (std::int64_t slot = 0; slot < ids.shape[2]; ++slot) {
    const std::int64_t id = core::read_i32(ids, r.q_begin + i, h, slot);
    if (id == -1 || id == block) return id == block;
  }
  return false;
}

inline double scale_of(const Problem& p) {
  if (p.attention.softmax_scale) return static_cast<double>(*p.attention.softmax_scale);
  return 1.0 / std::sqrt(static_cast<double>(p.attention.head_dim));
}

}  // namespace msa::reference
