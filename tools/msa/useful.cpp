// SPDX-License-Identifier: MIT
#include "useful.h"

#include <algorithm>
#include <vector>

#include "testkit/requests.h"

namespace msa::cli {
namespace {

using testkit::Operands;
using testkit::Request;

double item_bytes(DType dtype) { return static_cast<double>(size_in_bytes(dtype, 2)) / 2; }

double bytes_of(const Tensor& tensor) {
  if (!tensor) return 0;
  double bytes = item_bytes(tensor.dtype);
  for (int i = 0; i < tensor.rank; ++i) bytes *= static_cast<double>(tensor.shape[i]);
  return bytes;
}

/// Bytes of one key of one head, in k and v together.
double kv_row_bytes(const Problem& p) {
  const Format kv = p.attention.kv.value_or(p.attention.q);
  const auto dims = static_cast<double>(p.attention.head_dim + p.attention.value_dim);
  double scales = kv.scale == Scale::Token ? 2 * sizeof(float) : 0;
  if (kv.group > 0) scales = dims / static_cast<double>(kv.group);
  return dims * item_bytes(kv.storage) + scales;
}

/// Keys that rows of one request see, summed over rows.
double visible_keys(const Request& r) {
  double keys = 0;
  for (std::int64_t i = 0; i < r.seqlen_q; ++i) keys += static_cast<double>(r.visible_keys(i));
  return keys;
}

std::int64_t most_visible(const Request& r) {
  return r.seqlen_q > 0 ? r.visible_keys(r.seqlen_q - 1) : 0;
}

void add_dense(const Problem& p, const Request& r, UsefulWork& work) {
  const auto dims = static_cast<double>(p.attention.head_dim + p.attention.value_dim);
  work.attend_ops += 2 * dims * static_cast<double>(p.attention.heads_q) * visible_keys(r);
  work.bytes += kv_row_bytes(p) * static_cast<double>(p.attention.heads_kv * most_visible(r));
}

void add_index(const Problem& p, const Request& r, UsefulWork& work) {
  work.index_ops += 2 * static_cast<double>(p.index.dim * p.index.heads) * visible_keys(r);
  // With a filter the codes must be read, and of the keys what it lets through: counted as none.
  const Format keys = p.index.k.value_or(p.index.q);
  const DType read = p.index.filter ? p.index.filter->storage : keys.storage;
  double row = static_cast<double>(p.index.dim) * item_bytes(read);
  if (keys.group > 0) row += static_cast<double>(p.index.dim) / static_cast<double>(keys.group);
  work.bytes += static_cast<double>(p.index.heads_k * most_visible(r)) * row;
}

/// Keys that the lists of one head name; each key's bytes count once, however many rows list it.
void add_listed(const Problem& p, const Request& r, const Tensor& ids, std::int64_t head,
                UsefulWork& work) {
  std::vector<std::int64_t> ends(
      static_cast<std::size_t>(testkit::ceil_div(r.seqlen_k, r.block_size)), 0);
  double keys = 0;
  for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
    for (std::int64_t slot = 0; slot < ids.shape[2]; ++slot) {
      const std::int32_t id = testkit::int_at(ids, r.q_begin + i, head, slot);
      if (id < 0) break;
      const auto [begin, end] = r.block_keys(i, id);
      if (begin >= end) continue;
      keys += static_cast<double>(end - begin);
      std::int64_t& seen = ends[static_cast<std::size_t>(begin / r.block_size)];
      seen = std::max(seen, end - begin);
    }
  }
  double distinct = 0;
  for (const std::int64_t count : ends) distinct += static_cast<double>(count);
  const auto group = static_cast<double>(p.attention.heads_q / p.attention.heads_kv);
  work.attend_ops +=
      2 * static_cast<double>(p.attention.head_dim + p.attention.value_dim) * group * keys;
  work.bytes += kv_row_bytes(p) * distinct;
}

}  // namespace

UsefulWork useful_work(const Problem& p, const Operands& o) {
  UsefulWork work;
  for (const Tensor* tensor : {&o.q, &o.index_q, &o.scores_in, &o.block_ids_in, &o.out, &o.lse,
                               &o.block_max, &o.scores, &o.block_ids, &o.chosen_scores}) {
    work.bytes += bytes_of(*tensor);
  }
  for (const Tensor* tensor : {&o.out_in, &o.lse_in, &o.dout, &o.dlse, &o.dq, &o.dk, &o.dv})
    work.bytes += bytes_of(*tensor);
  const bool msa = p.op == Op::MsaAttention;
  const Tensor& ids = msa ? o.block_ids : o.block_ids_in;
  for (const Request& r : testkit::requests_of(p, o.batch)) {
    if (p.op == Op::DenseAttention || p.op == Op::DenseAttentionBackward) add_dense(p, r, work);
    if (msa || p.op == Op::SelectBlocks || p.op == Op::BlockScores) add_index(p, r, work);
    if (!ids) continue;
    for (std::int64_t head = 0; head < p.attention.heads_kv; ++head)
      add_listed(p, r, ids, head, work);
  }
  // Scores and weights' gradients, and the products with q, k and dout: five where attention has
  // two.
  const bool derives = p.op == Op::SparseAttentionBackward || p.op == Op::DenseAttentionBackward;
  if (derives) work.attend_ops *= 2.5;
  return work;
}

}  // namespace msa::cli
