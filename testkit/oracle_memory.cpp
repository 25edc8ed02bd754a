// SPDX-License-Identifier: MIT
// See oracle_memory.h.
#include "testkit/oracle_memory.h"

#include "testkit/requests.h"

namespace msa::testkit {

namespace {

std::vector<std::int32_t> lists_of(const Operands& operands) {
  const Tensor& ids = operands.block_ids_in;
  std::vector<std::int32_t> lists;
  if (!ids) return lists;
  for (std::int64_t i = 0; i < ids.shape[0]; ++i) {
    for (std::int64_t h = 0; h < ids.shape[1]; ++h) {
      for (std::int64_t s = 0; s < ids.shape[2]; ++s) lists.push_back(int_at(ids, i, h, s));
    }
  }
  return lists;
}

}  // namespace

Remembered::Remembered(const Problem& problem, const Operands& operands)
    : answer(problem, operands), lists_(lists_of(operands)) {
  if (!operands.q) return;
  kv_heads_ = problem.attention.heads_kv;
  marks_.resize(static_cast<std::size_t>(operands.q.shape[0] * kv_heads_));
}

Remembered& OracleMemory::of(const Problem& problem, const Operands& operands) {
  std::unique_ptr<Remembered>& known = of_op_.at(static_cast<std::size_t>(problem.op));
  if (known == nullptr || known->lists_ != lists_of(operands)) {
    known = std::make_unique<Remembered>(problem, operands);
  }
  return *known;
}

}  // namespace msa::testkit
