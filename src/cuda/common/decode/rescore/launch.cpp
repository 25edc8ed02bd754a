// SPDX-License-Identifier: MIT
// The table of instances; each is compiled in a file of its own under instances/.
#include "cuda/common/decode/rescore/launch.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "core/geometry.h"
#include "msa/error.h"

namespace msa::cuda::common::decode {

namespace {

using core::ceil_div;

constexpr std::array kInstances = {
    RescoreConfig{.storage = Storage::Bf16, .dim = 128},
    RescoreConfig{.storage = Storage::F16, .dim = 128},
};

using Launch = void (*)(const RescoreParams&, cudaStream_t);

template <std::size_t... kIndices>
constexpr std::array<Launch, sizeof...(kIndices)> launches(std::index_sequence<kIndices...>) {
  return {&launch_rescore_instance<kInstances[kIndices]>...};
}

constexpr auto kLaunches = launches(std::make_index_sequence<kInstances.size()>{});

}  // namespace

int rescore_ctas(std::int64_t rows, std::int64_t max_blocks, int multiprocessors) {
  constexpr std::int64_t kFewBlocks = 16;  // of which a share is worth a CTA
  const std::int64_t sms = multiprocessors;
  const std::int64_t share = ceil_div(sms, std::max<std::int64_t>(rows, 1));
  const std::int64_t most = std::max<std::int64_t>(1, ceil_div(max_blocks, kFewBlocks));
  return static_cast<int>(std::min(share, most));
}

void launch_rescore(const RescoreConfig& config, const RescoreParams& params, cudaStream_t stream) {
  const auto at = std::find(kInstances.begin(), kInstances.end(), config);
  if (at == kInstances.end())
    throw Error(ErrorCode::Internal, "", "cuda decode: planned without an instance");
  kLaunches[static_cast<std::size_t>(at - kInstances.begin())](params, stream);
}

}  // namespace msa::cuda::common::decode
