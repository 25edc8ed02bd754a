// SPDX-License-Identifier: MIT
// See backward_walk.h.
#include "cpu/backward_walk.h"

#include <algorithm>
#include <cstring>

#include "core/contents.h"

namespace msa::cpu {
namespace {

/// The last job that begins at or before `item` of those that `before` counts.
const Job& job_of(std::span<const Job> jobs, std::int64_t item, std::int64_t Job::*before) {
  const auto after =
      std::upper_bound(jobs.begin(), jobs.end(), item,
                       [&](std::int64_t i, const Job& job) { return i < job.*before; });
  return *(after - 1);
}

/// Calls visit(block, slot) for the blocks of this request that a query token lists and sees.
template <class F>
void for_each_listed(const Tensor& ids, const core::Request& r, std::int64_t token,
                     std::int64_t head, const F& visit) {
  const core::Range visible = r.visible_blocks(token);
  const auto* list = static_cast<const std::int32_t*>(ids.data) +
                     (r.q_begin + token) * ids.stride[0] + head * ids.stride[1];
  for (std::int64_t slot = 0; slot < ids.shape[2]; ++slot) {
    const std::int64_t id = list[slot * ids.stride[2]];
    if (id < 0) break;
    if (visible.contains(id)) visit(id - visible.begin);
  }
}

}  // namespace

BackwardWalk::BackwardWalk(const Problem& problem, bool sparse, std::int64_t tile_tokens)
    : p_(problem),
      sparse_(sparse),
      tile_tokens_(tile_tokens),
      max_blocks_(core::ceil_div(problem.bounds.max_seqlen_k, problem.selection.block_size)) {}

VisitScratch BackwardWalk::take_thread(Scratch& from) const {
  const std::int64_t visits = sparse_ ? tile_tokens_ * p_.selection.topk : max_blocks_;
  VisitScratch t;
  t.pairs = from.take<std::uint64_t>(sparse_ ? visits : 0);
  t.visits = from.take<Visit>(visits);
  t.tokens = from.take<std::int32_t>(sparse_ ? visits : tile_tokens_);
  return t;
}

BackwardWalk::Run BackwardWalk::take(Scratch& from) const {
  Run run;
  run.room = from.take<Job>(p_.bounds.batch);
  if (!sparse_) return run;
  const std::int64_t heads = p_.attention.heads_kv;
  run.starts = from.take<std::int64_t>(heads * (p_.bounds.batch * max_blocks_ + 1));
  run.tokens = from.take<std::int32_t>(heads * p_.bounds.total_q * p_.selection.topk);
  return run;
}

void BackwardWalk::read(const core::Call& call, Run& run) const {
  const std::int64_t count = core::num_requests(call);
  std::int64_t k_begin = 0, tiles = 0, blocks = 0;
  for (std::int64_t b = 0; b < count; ++b) {
    Job job{.request = core::read_request(p_, call, b, k_begin)};
    k_begin += job.request.seqlen_k;
    job.tiles_before = tiles;
    job.tiles = core::ceil_div(job.request.seqlen_q, tile_tokens_);
    job.blocks_before = blocks;
    job.blocks = job.request.blocks().size();
    tiles += job.tiles;
    blocks += job.blocks;
    run.room[b] = job;
  }
  run.jobs = {run.room, static_cast<std::size_t>(count)};
}

/// Every block that a token of the tile attends to, ascending, with those tokens.
void BackwardWalk::list_visits(const core::Call& call, QueryTile& tile,
                               const VisitScratch& scratch) const {
  tile.visits = scratch.visits;
  tile.visit_tokens = scratch.tokens;
  if (!sparse_) {
    const std::int64_t last = tile.token + tile.tokens - 1;
    tile.count = tile.request.visible_blocks(last).size();
    for (std::int64_t t = 0; t < tile.tokens; ++t) scratch.tokens[t] = static_cast<std::int32_t>(t);
    for (std::int64_t block = 0; block < tile.count; ++block) {
      // Those in front see less, or as much.
      std::int32_t first = 0;
      while (tile.request.visible_blocks(tile.token + first).size() <= block) ++first;
      scratch.visits[block] = {static_cast<std::int32_t>(block), first,
                               static_cast<std::int32_t>(tile.tokens) - first};
    }
    return;
  }
  std::int64_t pairs = 0;
  for (std::int64_t t = 0; t < tile.tokens; ++t) {
    for_each_listed(call.block_ids_in, tile.request, tile.token + t, tile.head,
                    [&](std::int64_t block) {
                      scratch.pairs[pairs++] =
                          static_cast<std::uint64_t>(block) << 32 | static_cast<std::uint64_t>(t);
                    });
  }
  std::sort(scratch.pairs, scratch.pairs + pairs);
  for (std::int64_t i = 0; i < pairs; ++i) {
    const auto block = static_cast<std::int32_t>(scratch.pairs[i] >> 32);
    scratch.tokens[i] = static_cast<std::int32_t>(scratch.pairs[i] & 0xffffffffu);
    if (tile.count == 0 || scratch.visits[tile.count - 1].block != block)
      scratch.visits[tile.count++] = {block, static_cast<std::int32_t>(i), 0};
    ++scratch.visits[tile.count - 1].count;
  }
}

QueryTile BackwardWalk::tile(const core::Call& call, const Run& run, std::int64_t index,
                             std::int64_t head, const VisitScratch& scratch) const {
  const Job& job = job_of(run.jobs, index, &Job::tiles_before);
  QueryTile tile{.request = job.request, .head = head};
  tile.token = (index - job.tiles_before) * tile_tokens_;
  tile.tokens = std::min(tile_tokens_, job.request.seqlen_q - tile.token);
  list_visits(call, tile, scratch);
  return tile;
}

/// The tokens of every block under one head: counted, summed up, placed.
void BackwardWalk::invert(const core::Call& call, const Run& run, std::int64_t head) const {
  const std::span<const Job> jobs = run.jobs;
  const std::int64_t blocks = run.blocks();
  std::int64_t* const starts = run.starts + head * (p_.bounds.batch * max_blocks_ + 1);
  std::int32_t* const tokens = run.tokens + head * p_.bounds.total_q * p_.selection.topk;
  const auto for_each_pair = [&](const auto& visit) {
    for (const Job& job : jobs) {
      for (std::int64_t token = 0; token < job.request.seqlen_q; ++token) {
        for_each_listed(call.block_ids_in, job.request, token, head,
                        [&](std::int64_t block) { visit(job.blocks_before + block, token); });
      }
    }
  };
  std::fill_n(starts, blocks + 1, 0);
  for_each_pair([&](std::int64_t block, std::int64_t) { ++starts[block + 1]; });
  for (std::int64_t block = 0; block < blocks; ++block) starts[block + 1] += starts[block];
  // Placing moves each start to its end, which is where the next block starts.
  for_each_pair([&](std::int64_t block, std::int64_t token) {
    tokens[starts[block]++] = static_cast<std::int32_t>(token);
  });
  for (std::int64_t block = blocks; block > 0; --block) starts[block] = starts[block - 1];
  starts[0] = 0;
}

KeyBlock BackwardWalk::block(const Run& run, std::int64_t index, std::int64_t head) const {
  const Job& job = job_of(run.jobs, index, &Job::blocks_before);
  KeyBlock block{.request = job.request, .head = head};
  block.block = index - job.blocks_before;
  if (sparse_) {
    const std::int64_t* const starts =
        run.starts + head * (p_.bounds.batch * max_blocks_ + 1) + index;
    block.tokens = run.tokens + head * p_.bounds.total_q * p_.selection.topk + starts[0];
    block.count = starts[1] - starts[0];
    return block;
  }
  // Visible keys never decrease from token to token.
  std::int64_t low = 0, high = block.request.seqlen_q;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (block.request.visible_blocks(middle).size() > block.block) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  block.first_token = low;
  block.count = block.request.seqlen_q - low;
  return block;
}

void clear_gradient(const RowTensor& t, DType dtype, std::int64_t heads, std::int64_t dim,
                    std::int64_t begin, std::int64_t end) {
  if (t.data == nullptr) return;
  const std::int64_t item = dtype == DType::F32 ? 4 : 2;
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t h = 0; h < heads; ++h)
      std::memset(t.data + (row * t.row + h * t.head) * item, 0,
                  static_cast<std::size_t>(dim * item));
  }
}

void clear_unowned(const RowTensor& t, DType dtype, std::int64_t heads, std::int64_t dim,
                   std::span<const Job> jobs, std::int64_t rows) {
  std::int64_t end = 0;
  for (const Job& job : jobs) {
    clear_gradient(t, dtype, heads, dim, end, job.request.k_begin);
    end = job.request.k_begin + job.request.seqlen_k;
  }
  clear_gradient(t, dtype, heads, dim, end, rows);
}

PairedKeys take_tile_keys(Scratch& from, std::int64_t keys, std::int64_t dim) {
  return {.halves = from.take<std::uint16_t>(keys * core::round_up(dim, kTileKeys)),
          .strips = from.take<std::uint32_t>(keys / 2 * dim)};
}

PairedRows take_tile_rows(Scratch& from, std::int64_t dim) {
  return {.lanes = from.take<std::uint32_t>(kBackwardRows * core::round_up(dim, kTileKeys) / 2),
          .strips = from.take<std::uint32_t>(kBackwardRows / 2 * dim)};
}

RowTensor row_tensor(const Tensor& t) {
  if (!t) return {};
  return {static_cast<std::byte*>(t.data), t.stride[0], t.stride[1]};
}

NumberTensor number_tensor(const Tensor& t) {
  if (!t) return {};
  return {static_cast<const float*>(t.data), t.stride[0], t.stride[1]};
}

}  // namespace msa::cpu
