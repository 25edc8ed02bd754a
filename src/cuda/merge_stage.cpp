// SPDX-License-Identifier: MIT
#include "cuda/merge_stage.h"

#include <limits>

#include "cuda/batch.h"
#include "cuda/common/merge_selections/launch.h"
#include "cuda/common/merge_states/launch.h"
#include "cuda/layout.h"

namespace msa::cuda {
namespace {

static_assert(kMaxParts == common::merge_states::kMaxParts &&
                  kMaxParts == common::merge_selections::kMaxParts &&
                  kMaxTopk == common::merge_selections::kMaxWidth,
              "the parts of any legal call fit the kernels' parameters");

void run_states(const Problem& problem, const core::Call& call, cudaStream_t stream) {
  common::merge_states::Params params{
      .num_parts = static_cast<int>(call.part_outs.size()),
      .rows = call.out.shape[0] * problem.attention.heads_q,
      .heads = static_cast<int>(problem.attention.heads_q),
      .dim = problem.attention.value_dim,
      .storage = storage_of(problem.attention.q.storage),
      .out_storage = storage_of(problem.outputs.dtype),
      .out = call.out.data,
      .stride_out_t = call.out.stride[0],
      .stride_out_h = call.out.stride[1],
  };
  for (std::size_t n = 0; n < call.part_outs.size(); ++n) {
    const Tensor& out = call.part_outs[n];
    const Tensor& lse = call.part_lses[n];
    params.parts[n] = {.out = out.data,
                       .stride_out_t = out.stride[0],
                       .stride_out_h = out.stride[1],
                       .lse = static_cast<const float*>(lse.data),
                       .stride_lse_t = lse.stride[0],
                       .stride_lse_h = lse.stride[1]};
  }
  if (call.lse) {
    params.lse = static_cast<float*>(call.lse.data);
    params.stride_lse_t = call.lse.stride[0];
    params.stride_lse_h = call.lse.stride[1];
  }
  common::merge_states::launch(params, stream);
}

void run_selections(const Problem& problem, const core::Call& call, StatusWord* status,
                    cudaStream_t stream) {
  const Tensor& ids = call.block_ids;
  common::merge_selections::Params params{
      .num_parts = static_cast<int>(call.part_ids.size()),
      .rows = ids.shape[0] * problem.attention.heads_kv,
      .heads = static_cast<int>(problem.attention.heads_kv),
      .k = static_cast<int>(problem.selection.topk),
      .ids = static_cast<int*>(ids.data),
      .stride_ids_t = ids.stride[0],
      .stride_ids_h = ids.stride[1],
      .stride_ids_slot = ids.stride[2],
  };
  for (std::size_t n = 0; n < call.part_ids.size(); ++n) {
    const Tensor& list = call.part_ids[n];
    const Tensor& scores = call.part_scores[n];
    params.parts[n] = {.ids = static_cast<const int*>(list.data),
                       .stride_ids_t = list.stride[0],
                       .stride_ids_h = list.stride[1],
                       .stride_ids_slot = list.stride[2],
                       .scores = static_cast<const float*>(scores.data),
                       .stride_scores_t = scores.stride[0],
                       .stride_scores_h = scores.stride[1],
                       .stride_scores_slot = scores.stride[2],
                       .width = static_cast<int>(list.shape[2])};
  }
  if (call.chosen_scores) {
    params.chosen = static_cast<float*>(call.chosen_scores.data);
    params.stride_chosen_t = call.chosen_scores.stride[0];
    params.stride_chosen_h = call.chosen_scores.stride[1];
    params.stride_chosen_slot = call.chosen_scores.stride[2];
  }
  params.status = status;
  common::merge_selections::launch(params, stream);
}

}  // namespace

std::string MergeStage::rejects(const Problem& p) {
  const bool states = p.op == Op::MergeStates;
  const std::int64_t heads = states ? p.attention.heads_q : p.attention.heads_kv;
  if (p.bounds.total_q * heads > std::numeric_limits<int>::max())
    return "at most 2^31 - 1 pairs of a query row and a head";
  return "";
}

void MergeStage::run(const Problem& problem, const core::Call& call, void* workspace,
                     cudaStream_t stream) const {
  if (problem.op == Op::MergeStates) return run_states(problem, call, stream);
  run_selections(problem, call, kStatus.in(workspace), stream);
}

}  // namespace msa::cuda
