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
      .out = make_rows<void>(call.out),
      .lse = make_rows<float>(call.lse),
  };
  for (std::size_t n = 0; n < call.part_outs.size(); ++n) {
    params.parts[n] = {.out = make_rows<const void>(call.part_outs[n]),
                       .lse = make_rows<const float>(call.part_lses[n])};
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
      .ids = make_slots<int>(ids),
      .chosen = make_slots<float>(call.chosen_scores),
      .status = status,
  };
  for (std::size_t n = 0; n < call.part_ids.size(); ++n) {
    params.parts[n] = {.lists = make_lists(call.part_ids[n]),
                       .scores = make_slots<const float>(call.part_scores[n])};
  }
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
