// SPDX-License-Identifier: MIT
// The table of instances; each is compiled in a file of its own under instances/.
#include "cuda/sm90/kvouter/launch.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "msa/error.h"

namespace msa::cuda::sm90::kvouter {

namespace {

constexpr std::array kInstances = {
    Config{.storage = Storage::Bf16},
    Config{.storage = Storage::F16},
    Config{.storage = Storage::Bf16, .kv = Storage::E4m3},
    Config{.storage = Storage::F16, .kv = Storage::E4m3},
};

using Launch = void (*)(const Params&, const Maps&, int, int, cudaStream_t);

template <std::size_t... kIndices>
constexpr std::array<Launch, sizeof...(kIndices)> launches(std::index_sequence<kIndices...>) {
  return {&launch_instance<kInstances[kIndices]>...};
}

constexpr auto kLaunches = launches(std::make_index_sequence<kInstances.size()>{});

}  // namespace

void launch(const Config& config, const Params& params, const Maps& maps, int ctas,
            cudaStream_t stream) {
  const auto at = std::find(kInstances.begin(), kInstances.end(), config);
  if (at == kInstances.end())
    throw Error(ErrorCode::Internal, "", "cuda kvouter: planned without an instance");
  launch_invert(params, stream);
  for (int chunk = 0; chunk * params.chunk_tiles < params.tile_limit; ++chunk)
    kLaunches[static_cast<std::size_t>(at - kInstances.begin())](params, maps, chunk, ctas, stream);
}

}  // namespace msa::cuda::sm90::kvouter
