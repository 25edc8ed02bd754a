// SPDX-License-Identifier: MIT
// Each gradient is a sum over the pairs of a row and a key that the row attends to. dq is summed
// row by row, dk and dv key by key, and what a pair gives is worked out each time: slow, and no
// gradient is ever half written.
#include "reference/backward.h"

#include <algorithm>
#include <cmath>

#include "core/contents.h"
#include "reference/sums.h"
#include "reference/walk.h"

namespace msa::reference {
namespace {

using core::Call;
using core::Request;

/// What one query head of a row brings to its pairs.
struct QueryRow {
  Vector q, dout;
  double lse = 0;
  double rest = 0;  // what is added to dP: dlse less the product of dout and out
};

QueryRow query_row(const Problem& p, const Call& call, std::int64_t row, std::int64_t h) {
  QueryRow query{row_vector(call.q, row, h), row_vector(call.dout, row, h)};
  query.lse = load(call.lse_in, offset(call.lse_in, row, h));
  const double delta = dot(query.dout, row_vector(call.out_in, row, h), p.attention.value_dim);
  query.rest = (call.dlse ? load(call.dlse, offset(call.dlse, row, h)) : 0.0) - delta;
  return query;
}

/// A weight and the gradient of its scaled score.
struct Pair {
  double p = 0, ds = 0;
};

Pair pair_of(const Problem& p, const QueryRow& query, const Vector& key, const Vector& value) {
  const double s = dot(query.q, key, p.attention.head_dim) * scale_of(p);
  const double weight = std::exp(s - query.lse);
  return {weight, weight * (dot(query.dout, value, p.attention.value_dim) + query.rest)};
}

// ---- dq, row by row ----

void query_gradient(const Problem& p, const Call& call, const Request& r, std::int64_t i,
                    std::int64_t h, std::span<double> sums) {
  const std::int64_t head = h / (p.attention.heads_q / p.attention.heads_kv);
  const QueryRow query = query_row(p, call, r.q_begin + i, h);
  const Keys keys = ragged(call, call.k, r), values = ragged(call, call.v, r);
  std::fill(sums.begin(), sums.end(), 0.0);
  if (query.lse != -kInf) {
    const KeyList list = call.block_ids_in ? listed_keys(call, r, i, head) : all_keys(r, i);
    list.for_each([&](std::int64_t key, std::size_t) {
      const Vector k = keys.at(key, head);
      add_row(sums, pair_of(p, query, k, values.at(key, head)).ds, k);
    });
  }
  store_gradient(call.dq, r.q_begin + i, h, scale_of(p), sums, false);
}

// ---- dk and dv, key by key ----

void key_gradients(const Problem& p, const Call& call, const Request& r, std::int64_t key,
                   std::int64_t head, std::span<double> dk, std::span<double> dv) {
  const std::int64_t group = p.attention.heads_q / p.attention.heads_kv;
  const Vector k = ragged(call, call.k, r).at(key, head), v = ragged(call, call.v, r).at(key, head);
  std::fill(dk.begin(), dk.end(), 0.0);
  std::fill(dv.begin(), dv.end(), 0.0);
  for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
    if (!attends(call, r, i, head, key)) continue;
    for (std::int64_t h = head * group; h < (head + 1) * group; ++h) {
      const QueryRow query = query_row(p, call, r.q_begin + i, h);
      if (query.lse == -kInf) continue;
      const Pair pair = pair_of(p, query, k, v);
      add_row(dk, pair.ds, query.q);
      add_row(dv, pair.p, query.dout);
    }
  }
  const bool more = p.gradients.accumulate;
  if (call.dk) store_gradient(call.dk, r.k_begin + key, head, scale_of(p), dk, more);
  if (call.dv) store_gradient(call.dv, r.k_begin + key, head, 1.0, dv, more);
}

}  // namespace

std::size_t num_sums(const Problem& p) {
  return static_cast<std::size_t>(p.attention.head_dim + p.attention.value_dim);
}

void attention_backward(const Problem& p, const Call& call, std::span<double> sums) {
  const std::size_t dim = static_cast<std::size_t>(p.attention.head_dim);
  // Rows that no request owns receive nothing, too.
  if (call.dk && !p.gradients.accumulate) clear_gradient(call.dk);
  if (call.dv && !p.gradients.accumulate) clear_gradient(call.dv);
  for_each_request(p, call, [&](const Request& r, std::int64_t b) {
    for (std::int64_t i = 0; call.dq && i < r.seqlen_q; ++i) {
      for (std::int64_t h = 0; h < p.attention.heads_q; ++h)
        query_gradient(p, call, r, i, h, sums.first(dim));
    }
    const bool keys = (call.dk || call.dv) && b < core::num_requests(call);
    for (std::int64_t key = 0; keys && key < r.seqlen_k; ++key) {
      for (std::int64_t head = 0; head < p.attention.heads_kv; ++head)
        key_gradients(p, call, r, key, head, sums.first(dim), sums.subspan(dim));
    }
  });
}

}  // namespace msa::reference
