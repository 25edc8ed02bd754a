// SPDX-License-Identifier: MIT
// The table of instances; each is compiled in a file of its own under instances/.
#include "cuda/sm90/decode/score/launch.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "core/geometry.h"
#include "msa/error.h"

namespace msa::cuda::sm90::decode {

namespace {

using core::ceil_div;

constexpr std::array kInstances = {
    ScoreConfig{.storage = Storage::Bf16, .tiles = 1, .dim = 128},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 2, .dim = 128},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 4, .dim = 128},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 1, .dim = 64},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 2, .dim = 64},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 4, .dim = 64},
    ScoreConfig{.storage = Storage::F16, .tiles = 1, .dim = 128},
    ScoreConfig{.storage = Storage::F16, .tiles = 2, .dim = 128},
    ScoreConfig{.storage = Storage::F16, .tiles = 4, .dim = 128},
    ScoreConfig{.storage = Storage::F16, .tiles = 1, .dim = 64},
    ScoreConfig{.storage = Storage::F16, .tiles = 2, .dim = 64},
    ScoreConfig{.storage = Storage::F16, .tiles = 4, .dim = 64},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 1, .dim = 128, .keys = Storage::E4m3},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 2, .dim = 128, .keys = Storage::E4m3},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 4, .dim = 128, .keys = Storage::E4m3},
    ScoreConfig{.storage = Storage::F16, .tiles = 1, .dim = 128, .keys = Storage::E4m3},
    ScoreConfig{.storage = Storage::F16, .tiles = 2, .dim = 128, .keys = Storage::E4m3},
    ScoreConfig{.storage = Storage::F16, .tiles = 4, .dim = 128, .keys = Storage::E4m3},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 1, .dim = 128, .keys = Storage::E2m1},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 2, .dim = 128, .keys = Storage::E2m1},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 4, .dim = 128, .keys = Storage::E2m1},
    ScoreConfig{.storage = Storage::F16, .tiles = 1, .dim = 128, .keys = Storage::E2m1},
    ScoreConfig{.storage = Storage::F16, .tiles = 2, .dim = 128, .keys = Storage::E2m1},
    ScoreConfig{.storage = Storage::F16, .tiles = 4, .dim = 128, .keys = Storage::E2m1},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 1, .dim = 128, .keys = Storage::I8},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 2, .dim = 128, .keys = Storage::I8},
    ScoreConfig{.storage = Storage::Bf16, .tiles = 4, .dim = 128, .keys = Storage::I8},
    ScoreConfig{.storage = Storage::F16, .tiles = 1, .dim = 128, .keys = Storage::I8},
    ScoreConfig{.storage = Storage::F16, .tiles = 2, .dim = 128, .keys = Storage::I8},
    ScoreConfig{.storage = Storage::F16, .tiles = 4, .dim = 128, .keys = Storage::I8},
};

using Launch = void (*)(const ScoreParams&, cudaStream_t);

template <std::size_t... kIndices>
constexpr std::array<Launch, sizeof...(kIndices)> launches(std::index_sequence<kIndices...>) {
  return {&launch_score_instance<kInstances[kIndices]>...};
}

constexpr auto kLaunches = launches(std::make_index_sequence<kInstances.size()>{});

}  // namespace

int score_ctas(std::int64_t batch, std::int64_t max_seqlen_k, int heads_k, int multiprocessors) {
  const std::int64_t steps = batch * ceil_div(max_seqlen_k, kScoreStep);
  const std::int64_t share = multiprocessors / heads_k;
  return static_cast<int>(std::clamp<std::int64_t>(steps, 1, std::max<std::int64_t>(1, share)));
}

void launch_score(const ScoreConfig& config, const ScoreParams& params, cudaStream_t stream) {
  const auto at = std::find(kInstances.begin(), kInstances.end(), config);
  if (at == kInstances.end())
    throw Error(ErrorCode::Internal, "", "cuda decode: planned without an instance");
  kLaunches[static_cast<std::size_t>(at - kInstances.begin())](params, stream);
}

}  // namespace msa::cuda::sm90::decode
