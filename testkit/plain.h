// SPDX-License-Identifier: MIT
// The plain computation: what a straightforward fp32 program gets that rounds P to the storage
// type. Its error against the oracle is the yardstick for everybody else's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "testkit/operands.h"
#include "testkit/requests.h"

namespace msa::testkit {

/// Keys of one row and KV head that are both listed and visible, in ascending order.
using KeyList = std::vector<std::int64_t>;

struct PlainResult {
  std::vector<float> out{};   // [variants, group, value_dim], in fp32
  std::vector<double> lse{};  // [variants, group]
  int variants = 1;  // roundings of P: 16-bit storage has three, each against another maximum
  std::vector<double> error_floor{};  // [group]: what roundings alone may cost any program
  std::vector<double> lse_floor{};    // [group]: the same of lse
  // No honest fp32 computation is further from the truth (relative to the largest |v|).
  double error_bound = 0;
  double largest_v = 0;
};

/// Attention of query row `row` over `keys` with every query head of KV head `kv_head`.
PlainResult plain_attention(const Problem& problem, const Operands& operands,
                            const Request& request, std::int64_t row, std::int64_t kv_head,
                            const KeyList& keys);

/// Merged state of one row and head. Its floor is three roundings of every term, for every type:
/// parts are merged in fp32.
struct PlainMerge {
  std::vector<float> out{};  // [value_dim]
  double error_floor = 0;
};
PlainMerge plain_merge(const Operands& operands, std::int64_t row, std::int64_t head);

/// A block's score of one row, and how far any fp32 summation may be from it.
struct ScoreBound {
  double score = 0;  // -inf where no visible key has a score
  double error = 0;
};
ScoreBound score_of_block(const Tensor& queries, std::int64_t row, std::int64_t head,
                          const KeyRows& keys, std::int64_t key_head, const Request& request,
                          std::int64_t i, std::int64_t id);

}  // namespace msa::testkit
