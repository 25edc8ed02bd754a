// SPDX-License-Identifier: MIT
#include "cuda/invert_stage.h"

#include "cuda/batch.h"
#include "cuda/common/invert/launch.h"
#include "cuda/device.h"

namespace msa::cuda {
namespace {

constexpr std::int64_t kMaxLists = std::int64_t{1} << 32;  // of all requests and heads: 16 GiB

common::invert::HeadRows head_rows(const Tensor& tensor) {
  return {static_cast<int*>(tensor.data), tensor.stride[0], tensor.stride[1]};
}

}  // namespace

std::string InvertStage::rejects(const Problem& p) {
  if (p.attention.heads_kv > kMaxGridYZ)
    return "at most 65535 KV heads, not " + std::to_string(p.attention.heads_kv);
  if (p.bounds.max_seqlen_k >= 1 << 30) return "requests hold fewer than 2^30 keys";
  if (p.bounds.batch >= 1 << 23) return "fewer than 2^23 requests";
  if ((p.bounds.batch + 1) * blocks_of(p) > kMaxLists / p.attention.heads_kv)
    return "at most 2^32 lists: one more than the requests, times their blocks, times the KV heads";
  return "";
}

InvertStage::InvertStage(const Problem& p, Layout& layout)
    : tokens_per_tile_(
          common::invert::tokens_per_tile(p.bounds.total_q, p.attention.heads_kv, blocks_of(p))),
      max_blocks_(static_cast<int>(blocks_of(p))) {
  const std::int64_t tiles =
      common::prologue::max_tiles(p.bounds.total_q, p.bounds.batch, tokens_per_tile_);
  requests_ = layout.take<RequestRecord>(p.bounds.batch);
  tiles_ = layout.take<common::prologue::TileRecord>(tiles);
  num_tiles_ = layout.take<int>(1);
  first_tiles_ = layout.take<int>(p.bounds.batch);
  first_blocks_ = layout.take<std::int64_t>(p.bounds.batch + 1);
  counts_ = layout.take<int>(tiles * p.attention.heads_kv * max_blocks_);
}

void InvertStage::run(const Problem& problem, const core::Call& call, void* workspace,
                      cudaStream_t stream) const {
  const BatchParams batch = make_batch(problem, call, {}, kStatus.in(workspace));
  // Of this call: the counters of tiles that it cannot have need no clearing.
  const auto tiles =
      static_cast<int>(common::prologue::max_tiles(batch.total_q, batch.batch, tokens_per_tile_));
  const common::prologue::Params front{.batch = batch,
                                       .requests = requests_.in(workspace),
                                       .tiles = {{.records = tiles_.in(workspace),
                                                  .most = tiles,
                                                  .tokens = tokens_per_tile_,
                                                  .count = num_tiles_.in(workspace)}},
                                       .first_tiles = first_tiles_.in(workspace),
                                       .first_blocks = first_blocks_.in(workspace)};
  common::prologue::launch(front, stream);
  const Tensor& ids = call.block_ids_in;
  common::invert::launch({.front = front,
                          .heads = static_cast<int>(problem.attention.heads_kv),
                          .max_blocks = max_blocks_,
                          .lists = make_lists(ids),
                          .counts = counts_.in(workspace),
                          .row_ptr = head_rows(call.row_ptr),
                          .num_entries = call.row_ptr.shape[1],
                          .q_indices = head_rows(call.q_indices),
                          .q_slots = head_rows(call.q_slots),
                          .length = call.q_indices.shape[1]},
                         stream);
}

std::string InvertStage::decisions() const {
  return "invert_tile " + std::to_string(tokens_per_tile_) + " tokens\n";
}

}  // namespace msa::cuda
