// SPDX-License-Identifier: MIT
// The loss of a row is a sum over its support. Gradients of index queries are summed row by row,
// those of index keys key by key, and what a pair gives is worked out each time.
#include "reference/index_loss.h"

#include <algorithm>
#include <cmath>

#include "core/contents.h"
#include "reference/steps.h"
#include "reference/sums.h"
#include "reference/walk.h"

namespace msa::reference {
namespace {

using core::Call;
using core::Request;

double index_scale(const Problem& p) {
  if (p.index.scale) return static_cast<double>(*p.index.scale);
  return 1.0 / std::sqrt(static_cast<double>(p.index.dim));
}

/// A row of the loss: a query token and an index head, which is a KV head.
class LossRow {
 public:
  LossRow(const Problem& p, const Call& call, const Request& r, std::int64_t i, std::int64_t head)
      : p_(p),
        call_(call),
        keys_(ragged(call, call.k, r)),
        index_keys_(ragged(call, call.index_k, r)),
        query_(row_vector(call.index_q, r.q_begin + i, head)),
        row_(r.q_begin + i),
        head_(head),
        support_(call.block_ids_in ? listed_keys(call, r, i, head) : all_keys(r, i)) {}

  std::int64_t key_head() const { return head_ * p_.index.heads_k / p_.index.heads; }
  const Vector& query() const { return query_; }
  Vector index_key(std::int64_t key) const { return index_keys_.at(key, key_head()); }
  const KeyList& support() const { return support_; }

  double score(std::int64_t key) const {
    return index_scale(p_) * dot(query_, index_key(key), p_.index.dim);
  }

  /// The mean of attention's weights over the heads of the group.
  double teacher(std::int64_t key) const {
    const std::int64_t group = p_.attention.heads_q / p_.attention.heads_kv;
    double sum = 0;
    for (std::int64_t h = head_ * group; h < (head_ + 1) * group; ++h) {
      const double lse = load(call_.lse_in, offset(call_.lse_in, row_, h));
      if (lse == -kInf) continue;
      const Vector q = row_vector(call_.q, row_, h);
      sum += std::exp(dot(q, keys_.at(key, head_), p_.attention.head_dim) * scale_of(p_) - lse);
    }
    return sum / static_cast<double>(group);
  }

  /// The logarithm of the student's sum; scratch holds a score for each key of the support.
  double lse(std::span<double> scratch) const {
    const std::span<double> scores = scratch.first(static_cast<std::size_t>(support_.size()));
    support_.for_each([&](std::int64_t key, std::size_t n) { scores[n] = score(key); });
    return softmax(scores).lse;
  }

  /// Of the sum of row_weight times loss to a score, without the scale.
  double gradient(std::int64_t key, double lse) const {
    const Tensor& weights = call_.row_weight;
    const double weight = weights ? load(weights, row_ * weights.stride[0]) : 1.0;
    return weight * (std::exp(score(key) - lse) - teacher(key));
  }

  double loss(double lse) const {
    double sum = 0;
    if (lse == -kInf) return sum;
    support_.for_each([&](std::int64_t key, std::size_t) {
      const double p = teacher(key);
      if (p != 0) sum += p * (std::log(p) - score(key) + lse);
    });
    return sum;
  }

 private:
  const Problem& p_;
  const Call& call_;
  Keys keys_, index_keys_;
  Vector query_;
  std::int64_t row_, head_;
  KeyList support_;
};

void row_outputs(const Problem& p, const Call& call, const Request& r, std::int64_t i,
                 std::int64_t head, double lse, std::span<double> sums) {
  const LossRow row(p, call, r, i, head);
  if (call.loss) store(call.loss, offset(call.loss, r.q_begin + i, head), row.loss(lse));
  if (!call.d_index_q) return;
  std::fill(sums.begin(), sums.end(), 0.0);
  if (lse != -kInf) {
    row.support().for_each([&](std::int64_t key, std::size_t) {
      add_row(sums, row.gradient(key, lse), row.index_key(key));
    });
  }
  store_gradient(call.d_index_q, r.q_begin + i, head, index_scale(p), sums, false);
}

/// Over all index heads that read the key head.
void key_output(const Problem& p, const Call& call, const Request& r, std::int64_t key,
                std::int64_t key_head, std::span<double> sums, std::span<const double> lses) {
  std::fill(sums.begin(), sums.end(), 0.0);
  const std::int64_t shared = p.index.heads / p.index.heads_k;
  for (std::int64_t head = key_head * shared; head < (key_head + 1) * shared; ++head) {
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
      const double lse = lses[static_cast<std::size_t>((r.q_begin + i) * p.index.heads + head)];
      // A row that gives nothing: 0 times its numbers, which may be infinite, would be NaN.
      if (lse == -kInf || !attends(call, r, i, head, key)) continue;
      const LossRow row(p, call, r, i, head);
      add_row(sums, row.gradient(key, lse), row.query());
    }
  }
  store_gradient(call.d_index_k, r.k_begin + key, key_head, index_scale(p), sums,
                 p.gradients.accumulate);
}

}  // namespace

std::size_t num_loss_sums(const Problem& p) {
  return static_cast<std::size_t>(p.index.dim + p.bounds.max_seqlen_k +
                                  p.bounds.total_q * p.index.heads);
}

void index_loss(const Problem& p, const Call& call, std::span<double> room) {
  const std::span<double> sums = room.first(static_cast<std::size_t>(p.index.dim));
  const auto longest = static_cast<std::size_t>(p.bounds.max_seqlen_k);
  const std::span<double> scratch = room.subspan(sums.size(), longest);
  const std::span<double> lses = room.subspan(sums.size() + longest);
  // Rows that no request owns receive nothing, too.
  if (call.d_index_k && !p.gradients.accumulate) clear_gradient(call.d_index_k);
  for_each_request(p, call, [&](const Request& r, std::int64_t b) {
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
      for (std::int64_t head = 0; head < p.index.heads; ++head) {
        double& lse = lses[static_cast<std::size_t>((r.q_begin + i) * p.index.heads + head)];
        lse = LossRow(p, call, r, i, head).lse(scratch);
        row_outputs(p, call, r, i, head, lse, sums);
      }
    }
    const bool keys = call.d_index_k && b < core::num_requests(call);
    for (std::int64_t key = 0; keys && key < r.seqlen_k; ++key) {
      for (std::int64_t head = 0; head < p.index.heads_k; ++head)
        key_output(p, call, r, key, head, sums, lses);
    }
  });
}

}  // namespace msa::reference
