// SPDX-License-Identifier: MIT
// What each operation expects of its tensors, argument by argument, within the bounds of the
// planned problem.
#include <cstdint>
#include <string>

#include "core/checker.h"
#include "core/contents.h"
#include "core/op_traits.h"
#include "core/validate.h"

namespace msa::core {
namespace {

constexpr Expected ints(const Shape& shape) { return {DType::I32, shape, Innermost::Strided}; }
constexpr Expected floats(const Shape& shape) { return {DType::F32, shape, Innermost::Strided}; }
constexpr Expected values(DType dtype, const Shape& shape) {
  return {dtype, shape, Innermost::Dense};
}

void expect_none(const char* name, const Tensor& tensor, const char* why) {
  if (tensor) reject({name, -1, &tensor}, "", std::string("none, ") + why, to_string(tensor));
}

// Ragged or paged keys or values; `first` is the extent of rows or pages.
Shape key_shape(const Problem& p, Extent first, std::int64_t heads, std::int64_t dim) {
  if (p.bounds.page_size == 0) return shape(first, exactly(heads), exactly(dim));
  return shape(first, exactly(p.bounds.page_size), exactly(heads), exactly(dim));
}

// As many rows or pages as the tensor before, any number for the first.
Extent like(const Tensor& before) { return before ? exactly(before.shape[0]) : Extent{}; }

// ---- inputs ----

void check_attention(Checker& c, const Problem& p, const Call& call) {
  const Shape query =
      shape(at_most(p.bounds.total_q), exactly(p.attention.heads_q), exactly(p.attention.head_dim));
  c.input("q", call.q, values(p.attention.q.storage, query));
  c.input("k", call.k,
          values(p.attention.q.storage,
                 key_shape(p, Extent{}, p.attention.heads_kv, p.attention.head_dim)));
  if (!p.outputs.out && !call.v) return;  // block maxima need no values
  c.input("v", call.v,
          values(p.attention.q.storage,
                 key_shape(p, like(call.k), p.attention.heads_kv, p.attention.value_dim)));
}

void check_index(Checker& c, const Problem& p, const Call& call) {
  const Extent rows = call.q ? exactly(call.q.shape[0]) : at_most(p.bounds.total_q);
  const Shape query = shape(rows, exactly(p.index.heads), exactly(p.index.dim));
  const Shape keys = key_shape(p, like(call.k), p.index.heads_k, p.index.dim);
  c.input("index_q", call.index_q, values(p.index.q.storage, query));
  c.input("index_k", call.index_k, values(p.index.q.storage, keys));
}

void check_listed(Checker& c, const Problem& p, const Call& call) {
  const Extent rows = call.q ? exactly(call.q.shape[0]) : at_most(p.bounds.total_q);
  c.input("block_ids", call.block_ids_in,
          ints(shape(rows, exactly(p.attention.heads_kv), exactly(p.selection.topk))));
}

// ---- the batch ----

// B of this call. One request owns everything where no tensor tells.
std::int64_t check_request_count(Checker& c, const Problem& p, const Batch& batch) {
  if (batch.cu_seqlens_q) {
    c.input("batch.cu_seqlens_q", batch.cu_seqlens_q, ints(shape(Extent{1, p.bounds.batch + 1})));
    return batch.cu_seqlens_q.shape[0] - 1;
  }
  const std::int64_t requests =
      batch.seqlens_k && batch.seqlens_k.rank == 1 ? batch.seqlens_k.shape[0] : 1;
  if (requests != 1 || p.bounds.batch < 1) {
    reject({"batch.cu_seqlens_q"}, "", "a tensor of i32, as there is not one request", "none");
  }
  return requests;
}

void expect_within(const char* name, std::int64_t rows, std::int64_t bound) {
  if (rows <= bound) return;
  reject({name}, "",
         "a tensor of i32, or at most " + std::to_string(bound) + " rows in one request",
         "none and " + std::to_string(rows) + " rows");
}

// Lengths may be left out where one request owns all rows.
void check_missing_lengths(const Problem& p, const Call& call, std::int64_t requests) {
  const Tensor& keys = call.k ? call.k : call.index_k;
  if (!call.batch.cu_seqlens_q) {
    expect_within("batch.cu_seqlens_q", num_query_rows(call), p.bounds.max_seqlen_q);
  }
  if (call.batch.seqlens_k) return;
  const bool one = requests == 1 && keys && p.bounds.page_size == 0 && !call.batch.cu_seqlens_k;
  if (!one) {
    reject({"batch.seqlens_k"}, "", "a tensor of i32 with an extent of " + std::to_string(requests),
           "none");
  }
  expect_within("batch.seqlens_k", keys.shape[0], p.bounds.max_seqlen_k);
}

void check_batch(Checker& c, const Problem& p, const Call& call) {
  const Batch& batch = call.batch;
  const std::int64_t requests = check_request_count(c, p, batch);
  const auto optional = [&](const char* name, const Tensor& tensor, std::int64_t extent) {
    if (tensor) c.input(name, tensor, ints(shape(exactly(extent))));
  };
  optional("batch.seqlens_k", batch.seqlens_k, requests);
  optional("batch.q_offsets", batch.q_offsets, requests);
  optional("batch.key_offsets", batch.key_offsets, requests);
  optional("batch.total_seqlens_k", batch.total_seqlens_k, requests);
  if (!call.k && !call.index_k) {
    expect_none("batch.cu_seqlens_k", batch.cu_seqlens_k, "as the operation takes no keys");
    expect_none("batch.page_table", batch.page_table, "as the operation takes no keys");
  } else if (p.bounds.page_size != 0) {
    expect_none("batch.cu_seqlens_k", batch.cu_seqlens_k, "as the plan is for paged keys");
    c.input("batch.page_table", batch.page_table, ints(shape(exactly(requests), Extent{})));
  } else {
    expect_none("batch.page_table", batch.page_table, "as the plan is for ragged keys");
    optional("batch.cu_seqlens_k", batch.cu_seqlens_k, requests + 1);
  }
  check_missing_lengths(p, call, requests);
}

// ---- outputs ----

// Checks an output that the plan may lack.
void planned_output(Checker& c, bool planned, const char* name, const Tensor& tensor,
                    const Expected& expected) {
  if (!planned) return expect_none(name, tensor, "as the plan does not write it");
  c.output(name, tensor, expected);
}

Extent blocks_of(const Problem& p) {
  return at_least(ceil_div(p.bounds.max_seqlen_k, p.selection.block_size));
}

void check_attention_outputs(Checker& c, const Problem& p, const Call& call) {
  const Extent rows = exactly(num_query_rows(call));
  const Extent heads = exactly(p.attention.heads_q);
  planned_output(c, p.outputs.out, "out", call.out,
                 values(p.outputs.dtype, shape(rows, heads, exactly(p.attention.value_dim))));
  planned_output(c, p.outputs.lse, "lse", call.lse, floats(shape(rows, heads)));
  planned_output(c, p.outputs.block_max, "block_max", call.block_max,
                 floats(shape(rows, heads, blocks_of(p))));
}

void check_selection_outputs(Checker& c, const Problem& p, const Call& call, std::int64_t heads) {
  const Shape list =
      shape(exactly(num_query_rows(call)), exactly(heads), exactly(p.selection.topk));
  // msa_attention writes the ids where somebody wants them.
  if (p.op != Op::MsaAttention || call.block_ids) c.output("block_ids", call.block_ids, ints(list));
  planned_output(c, p.outputs.chosen_scores, "chosen_scores", call.chosen_scores, floats(list));
}

void check_inversion_outputs(Checker& c, const Problem& p, const Call& call) {
  const Shape list =
      shape(exactly(p.attention.heads_kv), at_least(num_query_rows(call) * p.selection.topk));
  c.output("row_ptr", call.row_ptr, ints(shape(exactly(p.attention.heads_kv), at_least(1))));
  c.output("q_indices", call.q_indices, ints(list));
  Shape same = list;
  same.extent[1] = exactly(call.q_indices.shape[1]);
  c.output("q_slots", call.q_slots, ints(same));
}

// ---- merges ----

void expect_parts(const char* name, std::size_t given, std::int64_t planned) {
  if (static_cast<std::int64_t>(given) == planned) return;
  reject({name}, "", std::to_string(planned) + " parts", std::to_string(given));
}

Argument part(const char* name, std::span<const Tensor> parts, std::size_t i) {
  return {name, static_cast<int>(i), &parts[i]};
}

void check_merge_states(Checker& c, const Problem& p, const Call& call) {
  expect_parts("outs", call.part_outs.size(), p.bounds.parts);
  expect_parts("lses", call.part_lses.size(), p.bounds.parts);
  Extent rows = at_most(p.bounds.total_q);
  const Extent heads = exactly(p.attention.heads_q);
  for (std::size_t i = 0; i < call.part_outs.size(); ++i) {
    c.input(part("outs", call.part_outs, i),
            values(p.attention.q.storage, shape(rows, heads, exactly(p.attention.value_dim))));
    rows = exactly(call.part_outs[0].shape[0]);
    c.input(part("lses", call.part_lses, i), floats(shape(rows, heads)));
  }
  c.output("out", call.out,
           values(p.outputs.dtype, shape(rows, heads, exactly(p.attention.value_dim))),
           &call.part_outs[0]);
  if (!p.outputs.lse) return expect_none("lse", call.lse, "as the plan does not write it");
  c.output("lse", call.lse, floats(shape(rows, heads)), &call.part_lses[0]);
}

void check_merge_selections(Checker& c, const Problem& p, const Call& call) {
  expect_parts("block_ids_parts", call.part_ids.size(), p.bounds.parts);
  expect_parts("chosen_scores_parts", call.part_scores.size(), p.bounds.parts);
  Extent rows = at_most(p.bounds.total_q);
  const Extent heads = exactly(p.attention.heads_kv);
  for (std::size_t i = 0; i < call.part_ids.size(); ++i) {
    c.input(part("block_ids_parts", call.part_ids, i),
            ints(shape(rows, heads, Extent{1, kMaxTopk})));
    rows = exactly(call.part_ids[0].shape[0]);
    c.input(part("chosen_scores_parts", call.part_scores, i),
            floats(shape(rows, heads, exactly(call.part_ids[i].shape[2]))));
  }
  check_selection_outputs(c, p, call, p.attention.heads_kv);
}

void check_tensors(Checker& c, const Problem& p, const Call& call) {
  if (p.op == Op::MergeStates) return check_merge_states(c, p, call);
  if (p.op == Op::MergeSelections) return check_merge_selections(c, p, call);
  const OpTraits traits = op_traits(p.op);
  if (traits.attends) check_attention(c, p, call);
  if (traits.indexes) check_index(c, p, call);
  if (traits.lists) check_listed(c, p, call);
  if (p.op == Op::SelectTopk) {
    c.input("scores", call.scores_in,
            floats(shape(at_most(p.bounds.total_q), exactly(p.index.heads), blocks_of(p))));
  }
  check_batch(c, p, call);
  if (traits.attends) check_attention_outputs(c, p, call);
  if (traits.selects) check_selection_outputs(c, p, call, p.index.heads);
  if (p.op == Op::BlockScores) {
    const Extent rows = exactly(num_query_rows(call));
    c.output("scores", call.scores, floats(shape(rows, exactly(p.index.heads), blocks_of(p))));
  }
  if (p.op == Op::InvertSelection) check_inversion_outputs(c, p, call);
}

}  // namespace

void validate_call(const Problem& problem, const Call& call, Workspace workspace,
                   std::size_t workspace_bytes) {
  Checker checker(problem.device);
  check_tensors(checker, problem, call);
  checker.workspace(workspace, workspace_bytes);
}

}  // namespace msa::core
