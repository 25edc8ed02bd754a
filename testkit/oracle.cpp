// SPDX-License-Identifier: MIT
// The oracle on a call, or on the sub-problem that one row of it is.
#include "testkit/oracle.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "testkit/generate.h"
#include "testkit/memory.h"

namespace msa::testkit {

Tensor narrow(Tensor tensor, int dim, std::int64_t begin, std::int64_t count) {
  if (!tensor) return tensor;
  tensor.data = static_cast<std::byte*>(tensor.data) +
                size_in_bytes(tensor.dtype, begin * tensor.stride[dim]);
  tensor.shape[dim] = count;
  return tensor;
}

Answer::Answer(const Problem& problem, const Operands& operands)
    : part_{.kv_heads = problem.op == Op::MsaAttention || problem.op == Op::SparseAttention
                            ? problem.attention.heads_kv
                            : 0},
      problem_(problem),
      operands_(operands) {
  drop_filter();
  make_outputs();
  run();
}

Answer::Answer(const Problem& problem, const Operands& operands, const Request& request,
               std::int64_t i, const Part& part)
    : part_(part),
      problem_(problem),
      scale_(problem.attention.kv.value_or(problem.attention.q).scale),
      index_scale_(problem.index.k.value_or(problem.index.q).scale),
      operands_(operands) {
  part_.row_begin = request.q_begin + i;
  drop_filter();
  take_row(request, i);
  take_heads();
  make_outputs();
  run();
}

/// The truth is in the keys, but where codes alone decide.
void Answer::drop_filter() {
  if (problem_.op == Op::QuantizeIndex) return;
  operands_.candidates = {};
  if (problem_.selection.precision == Precision::Fast) return;
  problem_.index.filter.reset();
  operands_.index_k8 = operands_.index_k8_bounds = {};
}

void Answer::take_row(const Request& request, std::int64_t i) {
  const std::int64_t row = request.q_begin + i;
  Operands& o = operands_;
  for (Tensor* t : {&o.q, &o.index_q, &o.scores_in, &o.block_ids_in, &o.out, &o.lse, &o.block_max,
                    &o.scores, &o.block_ids, &o.chosen_scores}) {
    *t = narrow(*t, 0, row, 1);
  }
  Batch& batch = o.batch;
  numbers_ = {0, 1, static_cast<std::int32_t>(request.seqlen_k),
              static_cast<std::int32_t>(request.offset + i)};
  batch.cu_seqlens_q = make_tensor(&numbers_[0], DType::I32, {2});
  batch.seqlens_k = make_tensor(&numbers_[2], DType::I32, {1});
  batch.q_offsets = make_tensor(&numbers_[3], DType::I32, {1});
  batch.cu_seqlens_k = {};
  for (Tensor* t : {&batch.page_table, &batch.key_offsets, &batch.total_seqlens_k}) {
    *t = narrow(*t, 0, request.index, 1);
  }
  if (!batch.page_table) {
    for (Tensor* t : {&o.k, &o.v, &o.index_k}) {
      *t = narrow(*t, 0, request.k_begin, request.seqlen_k);
    }
    if (scale_ == Scale::Token || has_groups()) {
      for (Tensor* t : {&o.k_scale, &o.v_scale}) {
        *t = narrow(*t, 0, request.k_begin, request.seqlen_k);
      }
    }
    if (index_scale_ == Scale::Token || index_has_groups())
      o.index_k_scale = narrow(o.index_k_scale, 0, request.k_begin, request.seqlen_k);
  }
  problem_.bounds.batch = 1;
  problem_.bounds.total_q = 1;
  problem_.bounds.max_seqlen_q = 1;
  problem_.bounds.max_seqlen_k = request.seqlen_k;
}

void Answer::take_heads() {
  Operands& o = operands_;
  const std::int64_t first = part_.kv_head_begin, count = part_.kv_heads;
  const bool paged = static_cast<bool>(o.batch.page_table);
  const int key_heads = paged ? 2 : 1;
  if (o.q) {
    const std::int64_t group = problem_.attention.heads_q / problem_.attention.heads_kv;
    for (Tensor* t : {&o.q, &o.out, &o.lse, &o.block_max}) {
      *t = narrow(*t, 1, first * group, count * group);
    }
    for (Tensor* t : {&o.k, &o.v}) *t = narrow(*t, key_heads, first, count);
    for (Tensor* t : {&o.k_scale, &o.v_scale}) {
      const int heads = t->rank - (has_groups() ? 2 : 1);
      if (scale_ != Scale::Tensor) *t = narrow(*t, heads, first, count);
    }
    problem_.attention.heads_q = count * group;
    problem_.attention.heads_kv = count;
  }
  for (Tensor* t :
       {&o.block_ids_in, &o.block_ids, &o.chosen_scores, &o.scores, &o.scores_in, &o.index_q}) {
    *t = narrow(*t, 1, first, count);
  }
  if (o.index_q) {
    const std::int64_t shared = problem_.index.heads / problem_.index.heads_k;
    const std::int64_t first_key = first / shared;
    const std::int64_t last_key = (first + count - 1) / shared;
    o.index_k = narrow(o.index_k, key_heads, first_key, last_key - first_key + 1);
    if (index_scale_ != Scale::Tensor) {
      const int heads = o.index_k_scale.rank - (index_has_groups() ? 2 : 1);
      o.index_k_scale = narrow(o.index_k_scale, heads, first_key, last_key - first_key + 1);
    }
    problem_.index.heads_k = last_key - first_key + 1;
  }
  problem_.index.heads = count;
}

Tensor Answer::own(DType dtype, const Tensor& like) {
  std::int64_t elements = 1;
  Tensor tensor{.dtype = dtype, .rank = like.rank, .shape = like.shape};
  for (int d = like.rank; d-- > 0;) {
    tensor.stride[d] = elements;
    elements *= like.shape[d];
  }
  const auto bytes = static_cast<std::size_t>(size_in_bytes(dtype, elements));
  memory_.push_back(std::make_unique<std::byte[]>(bytes + 1));
  // As outputs are before a call: some are written in part.
  std::memset(memory_.back().get(), Buffer::kSentinel, bytes);
  tensor.data = memory_.back().get();
  return tensor;
}

void Answer::make_outputs() {
  Operands& o = operands_;
  for (Tensor* t : {&o.lse, &o.block_max, &o.scores, &o.chosen_scores}) {
    if (*t) *t = own(DType::F32, *t);
  }
  for (Tensor* t : {&o.block_ids, &o.row_ptr, &o.q_indices, &o.q_slots}) {
    if (*t) *t = own(DType::I32, *t);
  }
  for (Tensor* t : {&o.k_cache, &o.v_cache, &o.k_scale_cache, &o.v_scale_cache, &o.index_k8_out,
                    &o.index_k8_bounds_out}) {
    if (*t) *t = own(t->dtype, *t);
  }
  if (o.out) {
    o.out = own(DType::F32, o.out);
    problem_.outputs.dtype = DType::F32;
  }
  if (o.loss) o.loss = own(DType::F32, o.loss);
  for (Tensor* t : {&o.dq, &o.dk, &o.dv, &o.d_index_q, &o.d_index_k}) {
    if (!*t) continue;
    *t = own(DType::F32, *t);
    const bool queries = t == &o.dq || t == &o.d_index_q;
    if (!queries && problem_.gradients.accumulate) fill_accumulated(*t);
    problem_.gradients.dtype = DType::F32;
  }
  // Chosen scores tell how near a swapped id may be.
  const bool selects = problem_.op == Op::SelectBlocks || problem_.op == Op::SelectTopk;
  if (selects && !o.chosen_scores) {
    o.chosen_scores = own(DType::F32, o.block_ids);
    problem_.outputs.chosen_scores = true;
  }
}

void Answer::run() {
  problem_.options = {};
  problem_.options.backend = "reference";
  problem_.device = {};
  const Plan plan = make_plan(problem_);
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(kWorkspaceAlignment)); }
  };
  const std::size_t bytes = plan.workspace_bytes();
  const std::unique_ptr<void, Free> workspace(
      ::operator new(bytes, std::align_val_t(kWorkspaceAlignment)));
  msa::testkit::run(plan, operands_, {workspace.get(), bytes});
}

}  // namespace msa::testkit
