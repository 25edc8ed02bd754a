// SPDX-License-Identifier: MIT
// The table of instances, each compiled in a file of its own under instances/, and the launches of
// block_scores and select_blocks.
#include "cuda/mma/select/launch.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "msa/error.h"

namespace msa::cuda::mma::select {
namespace {

constexpr std::array kInstances = {
    Config{.storage = Storage::Bf16, .dim = 128},
    Config{.storage = Storage::Bf16, .dim = 64},
    Config{.storage = Storage::F16, .dim = 128},
    Config{.storage = Storage::F16, .dim = 64},
};

using Launch = void (*)(const Params&, int, cudaStream_t);

template <std::size_t... kIndices>
constexpr std::array<Launch, sizeof...(kIndices)> launches(std::index_sequence<kIndices...>) {
  return {&launch_instance<kInstances[kIndices]>...};
}

constexpr auto kLaunches = launches(std::make_index_sequence<kInstances.size()>{});

void launch(const Queries& queries, const Params& params, int ctas, cudaStream_t stream) {
  const auto at = std::find(kInstances.begin(), kInstances.end(),
                            Config{.storage = queries.storage, .dim = queries.dim});
  if (at == kInstances.end())
    throw Error(ErrorCode::Internal, "", "cuda select: planned without an instance");
  kLaunches[static_cast<std::size_t>(at - kInstances.begin())](params, ctas, stream);
}

}  // namespace

void launch_block_scores(const SelectPlan& plan, const Front& front, const Queries& queries,
                         const KeyRows<const std::uint16_t>& keys, const ScoresOut& out,
                         cudaStream_t stream) {
  Params params{common::select::score_params(plan, front, queries), keys, false};
  params.scores = out.scores;
  params.columns = out.columns;
  launch(queries, params, plan.ctas, stream);
}

void launch_select_blocks(const SelectPlan& plan, const Front& front, const Queries& queries,
                          const KeyRows<const std::uint16_t>& keys,
                          const common::topk::TopkParams& out, float* scratch,
                          cudaStream_t stream) {
  common::select::launch_select_blocks(plan, front, queries, out, scratch, stream,
                                       [&](const common::select::Params& params) {
                                         launch(queries, {params, keys, true}, plan.ctas, stream);
                                       });
}

}  // namespace msa::cuda::mma::select
