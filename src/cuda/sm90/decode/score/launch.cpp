// SPDX-License-Identifier: MIT
// The table of instances; each is compiled in a file of its own under instances/.
#include "cuda/sm90/decode/score/launch.h"

#include <array>
#include <cstddef>
#include <utility>

namespace msa::cuda::sm90::decode {
namespace {

using Launch = void (*)(const ScoreParams&, cudaStream_t);

template <std::size_t... kIndices>
constexpr std::array<Launch, sizeof...(kIndices)> launches(std::index_sequence<kIndices...>) {
  return {&launch_score_instance<kInstances[kIndices]>...};
}

constexpr auto kLaunches = launches(std::make_index_sequence<kInstances.size()>{});

}  // namespace

void launch_score(const ScoreConfig& config, const ScoreParams& params, cudaStream_t stream) {
  kLaunches[common::decode::find_instance(config, kInstances)](params, stream);
}

}  // namespace msa::cuda::sm90::decode
