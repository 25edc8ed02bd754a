// SPDX-License-Identifier: MIT
// The index tensors of a batch: lengths, offsets, shards, page tables.
#include <algorithm>
#include <string>
#include <utility>

#include "testkit/making.h"

namespace msa::testkit {

namespace {

constexpr std::uint64_t kPageStream = 300;

bool keyed(Op op) {
  return reads_attention_keys(op) || reads_index_keys(op) || stores_keys(op) || copies_index(op);
}

/// A shard's total where the case gives none but another request does: long enough for every query.
std::int64_t total_of(const Case& spec, const Lengths& r) {
  const std::int64_t keys = r.key_offset + r.seqlen_k;
  return r.total_k.value_or(spec.causal ? std::max(keys, offset_of(r) + r.seqlen_q) : keys);
}

void make_page_table(Making& m) {
  const std::int64_t batch = m.spec.requests();
  std::int64_t used = 0, width = 0;
  for (const Lengths& r : m.spec.lengths) {
    const std::int64_t pages = ceil_div(r.seqlen_k, m.spec.page_size);
    used += pages;
    width = std::max(width, pages);
  }
  m.key_extent = m.spec.pool > 0 ? m.spec.pool : used + 3;
  if (m.key_extent < used) {
    throw CaseError("pool: expected at least " + std::to_string(used) + " pages, got " +
                    std::to_string(m.spec.pool));
  }
  // Spread over the whole pool, the last page among them, in random order.
  std::vector<std::int32_t> pages(static_cast<std::size_t>(used));
  for (std::int64_t i = 0; i < used; ++i) {
    pages[i] = static_cast<std::int32_t>(m.key_extent - 1 - i * m.key_extent / used);
  }
  const Stream64 random(m.spec.seed, kPageStream);
  for (std::int64_t n = used; n > 1; --n) std::swap(pages[n - 1], pages[random.below(n, n)]);
  width += 2;
  std::vector<std::int32_t> table(static_cast<std::size_t>(batch * width));
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = kGarbage[i % kGarbage.size()];
  std::size_t next = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t count = ceil_div(m.spec.lengths[b].seqlen_k, m.spec.page_size);
    for (std::int64_t i = 0; i < count; ++i) table[b * width + i] = pages[next++];
  }
  m.operands.batch.page_table = m.tensors.ints("batch.page_table", {batch, width}, table);
}

void make_key_starts(Making& m) {
  std::int64_t total = 0;
  for (const Lengths& r : m.spec.lengths) total += r.seqlen_k;
  m.key_extent = total;
  if (m.spec.pool == 0) return;
  if (m.spec.pool < total) {
    throw CaseError("pool: expected at least " + std::to_string(total) + " rows, got " +
                    std::to_string(m.spec.pool));
  }
  m.key_extent = m.spec.pool;
  const std::int64_t batch = m.spec.requests();
  std::vector<std::int32_t> starts;
  std::int64_t before = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    starts.push_back(static_cast<std::int32_t>(before + (m.spec.pool - total) * (b + 1) / batch));
    before += m.spec.lengths[b].seqlen_k;
  }
  starts.push_back(static_cast<std::int32_t>(m.spec.pool));
  m.operands.batch.cu_seqlens_k = m.tensors.ints("batch.cu_seqlens_k", {batch + 1}, starts);
}

/// Index keys where they lie, and the first new position of each request, where one is not 0.
void take_index_batch(Making& m) {
  bool all = true;
  for (const Lengths& r : m.spec.lengths) {
    if (r.key_offset != 0 || offset_of(r) < 0 || offset_of(r) > r.seqlen_k)
      throw CaseError("lens: op=quantize_index needs first positions from 0 to the keys");
    all = all && offset_of(r) == 0;
  }
  const Batch given = m.operands.batch;
  m.operands.batch = {.seqlens_k = given.seqlens_k,
                      .cu_seqlens_k = given.cu_seqlens_k,
                      .page_table = given.page_table};
  if (!all) m.operands.batch.q_offsets = given.q_offsets;
}

}  // namespace

void make_batch(Making& m) {
  const std::int64_t batch = m.spec.requests();
  std::vector<std::int32_t> starts{0}, keys, offsets, shards, totals;
  bool offset_given = copies_index(m.spec.op), shard_given = false, total_given = false;
  for (const Lengths& r : m.spec.lengths) {
    starts.push_back(starts.back() + static_cast<std::int32_t>(r.seqlen_q));
    keys.push_back(static_cast<std::int32_t>(r.seqlen_k));
    offsets.push_back(static_cast<std::int32_t>(offset_of(r)));
    shards.push_back(static_cast<std::int32_t>(r.key_offset));
    totals.push_back(static_cast<std::int32_t>(total_of(m.spec, r)));
    offset_given |= r.q_offset.has_value();
    shard_given |= r.key_offset != 0;
    total_given |= r.total_k.has_value();
    m.longest = std::max(m.longest, r.key_offset + r.seqlen_k);
    m.longest = std::max(m.longest, std::max<std::int64_t>(offset_of(r), 0) + r.seqlen_q);
  }
  m.operands.batch.cu_seqlens_q = m.tensors.ints("batch.cu_seqlens_q", {batch + 1}, starts);
  m.operands.batch.seqlens_k = m.tensors.ints("batch.seqlens_k", {batch}, keys);
  if (offset_given)
    m.operands.batch.q_offsets = m.tensors.ints("batch.q_offsets", {batch}, offsets);
  if (shard_given)
    m.operands.batch.key_offsets = m.tensors.ints("batch.key_offsets", {batch}, shards);
  if (total_given)
    m.operands.batch.total_seqlens_k = m.tensors.ints("batch.total_seqlens_k", {batch}, totals);
  if (keyed(m.spec.op)) m.spec.page_size > 0 ? make_page_table(m) : make_key_starts(m);
  m.requests = requests_of(m.problem, m.operands.batch);
  if (copies_index(m.spec.op)) return take_index_batch(m);
  if (!stores_keys(m.spec.op)) return;
  for (const Lengths& r : m.spec.lengths) {
    if (r.seqlen_q > r.seqlen_k && m.spec.page_size > 0)
      throw CaseError("lens: op=quantize needs a position for every query");
  }
  // Rows outside pages have no batch, and pages no more than they need.
  const Batch given = m.operands.batch;
  m.operands.batch = {};
  if (m.spec.page_size > 0) {
    m.operands.batch.cu_seqlens_q = given.cu_seqlens_q;
    m.operands.batch.seqlens_k = given.seqlens_k;
    m.operands.batch.page_table = given.page_table;
  } else {
    m.key_extent = m.spec.rows();
  }
}

}  // namespace msa::testkit
