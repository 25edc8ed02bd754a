// SPDX-License-Identifier: MIT
#include "testkit/sample_gradients.h"

#include <algorithm>
#include <initializer_list>

namespace msa::testkit {

namespace {

constexpr std::int64_t kRowsOfPart = 4, kBlocksOfLoss = 2;

struct Extent {
  std::int64_t first = 0, count = 0;
};

/// Leaves `extent` of dimension `dim` of each tensor that is given.
void cut_tensors(std::initializer_list<Tensor*> tensors, int dim, Extent extent) {
  for (Tensor* t : tensors) {
    if (!*t) continue;
    t->data = dim == 0 ? address(*t, extent.first) : address(*t, 0, extent.first);
    t->shape[dim] = extent.count;
  }
}

GradientPart part_of(const Problem& problem, const Operands& operands, const Request& r,
                     Extent rows, Extent keys, Extent heads) {
  GradientPart part{.problem = problem, .operands = operands, .lengths = {}};
  Operands& o = part.operands;
  cut_tensors({&o.q, &o.out_in, &o.lse_in, &o.dout, &o.dlse, &o.block_ids_in, &o.dq, &o.index_q,
               &o.row_weight, &o.loss, &o.d_index_q},
              0, {r.q_begin + rows.first, rows.count});
  cut_tensors({&o.k, &o.v, &o.dk, &o.dv, &o.index_k, &o.d_index_k}, 0,
              {r.k_begin + keys.first, keys.count});
  const std::int64_t group = problem.attention.heads_q / problem.attention.heads_kv;
  cut_tensors({&o.q, &o.out_in, &o.lse_in, &o.dout, &o.dlse, &o.dq}, 1,
              {heads.first * group, heads.count * group});
  cut_tensors({&o.k, &o.v, &o.block_ids_in, &o.dk, &o.dv}, 1, heads);
  Problem& p = part.problem;
  p.bounds.batch = 1;
  p.bounds.total_q = p.bounds.max_seqlen_q = rows.count;
  p.attention.heads_q = heads.count * group;
  p.attention.heads_kv = heads.count;
  const auto i32 = [](std::int64_t x) { return static_cast<std::int32_t>(x); };
  part.lengths = std::make_shared<const std::array<std::int32_t, 6>>(
      std::array{0, i32(rows.count), i32(keys.count), i32(r.offset + rows.first),
                 i32(r.key_offset + keys.first), i32(r.total_k.value_or(r.seqlen_k))});
  const std::int32_t* at = part.lengths->data();
  o.batch = {};
  o.batch.cu_seqlens_q = make_tensor(at, DType::I32, {2});
  o.batch.seqlens_k = make_tensor(at + 2, DType::I32, {1});
  o.batch.q_offsets = make_tensor(at + 3, DType::I32, {1});
  if (p.op == Op::IndexLoss) return part;  // which takes no shards
  o.batch.key_offsets = make_tensor(at + 4, DType::I32, {1});
  o.batch.total_seqlens_k = make_tensor(at + 5, DType::I32, {1});
  return part;
}

std::vector<Extent> some_rows(const Request& request) {
  const std::int64_t count = std::min(kRowsOfPart, request.seqlen_q);
  const std::int64_t last = request.seqlen_q - count;
  if (count == 0) return {};
  return {{0, count}, {last / 2, count}, {last, count}};
}

std::vector<GradientPart> sample_loss(const Problem& problem, const Operands& operands,
                                      const Request& request) {
  std::vector<GradientPart> parts;
  const Extent keys{0, request.seqlen_k}, heads{0, problem.attention.heads_kv};
  const auto add = [&](Extent rows) -> GradientPart& {
    return parts.emplace_back(part_of(problem, operands, request, rows, keys, heads));
  };
  for (const Extent rows : some_rows(request)) {
    if (!operands.loss && !operands.d_index_q) break;
    add(rows).operands.d_index_k = {};
  }
  const std::int64_t step = request.block_size, blocks = ceil_div(request.seqlen_k, step);
  const std::int64_t first_key = std::max<std::int64_t>(blocks - kBlocksOfLoss, 0) * step;
  const std::int64_t first_row = std::max<std::int64_t>(first_key - request.offset, 0);
  if (!operands.d_index_k || blocks == 0 || first_row >= request.seqlen_q) return parts;
  GradientPart& part = add({first_row, request.seqlen_q - first_row});
  part.operands.loss = part.operands.d_index_q = {};
  part.first_key = first_key;
  return parts;
}

}  // namespace

std::vector<GradientPart> sample_gradients(const Problem& problem, const Operands& operands,
                                           const Request& request) {
  if (problem.op == Op::IndexLoss) return sample_loss(problem, operands, request);
  std::vector<GradientPart> parts;
  const Extent all_keys{0, request.seqlen_k}, all_rows{0, request.seqlen_q};
  for (const Extent rows : some_rows(request)) {
    if (!operands.dq) break;
    parts.push_back(
        part_of(problem, operands, request, rows, all_keys, {0, problem.attention.heads_kv}));
    parts.back().operands.dk = parts.back().operands.dv = {};
  }
  const std::int64_t step = request.block_size, blocks = ceil_div(request.seqlen_k, step);
  std::int64_t head = 0;
  for (const std::int64_t block : {std::int64_t{0}, blocks / 2, blocks - 1}) {
    if ((!operands.dk && !operands.dv) || blocks == 0) break;
    const Extent keys{block * step, std::min(step, request.seqlen_k - block * step)};
    parts.push_back(part_of(problem, operands, request, all_rows, keys, {head, 1}));
    parts.back().operands.dq = {};
    head = (head + 1) % problem.attention.heads_kv;
  }
  return parts;
}

}  // namespace msa::testkit
