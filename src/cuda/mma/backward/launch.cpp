// SPDX-License-Identifier: MIT
// The table of instances; each is compiled in a file of its own under instances/.
#include "cuda/mma/backward/launch.h"

#include <array>
#include <utility>

#include "msa/error.h"

namespace msa::cuda::mma::backward {
namespace {

constexpr std::array kInstances = {
    Config{.storage = Storage::Bf16, .head_dim = 128, .keys = 128, .rows = 64},
    Config{.storage = Storage::Bf16, .head_dim = 128, .keys = 64, .rows = 64},
    Config{.storage = Storage::Bf16, .head_dim = 128, .keys = 64, .rows = 32},
    Config{.storage = Storage::Bf16, .head_dim = 64, .keys = 128, .rows = 64},
    Config{.storage = Storage::Bf16, .head_dim = 64, .keys = 64, .rows = 32},
};

using Launch = void (*)(const Params&, int, cudaStream_t);

template <std::size_t... kIndices>
constexpr std::array<Launch, sizeof...(kIndices)> launches(std::index_sequence<kIndices...>) {
  return {&launch_instance<kInstances[kIndices]>...};
}

constexpr auto kLaunches = launches(std::make_index_sequence<kInstances.size()>{});

}  // namespace

void launch(const Config& config, const Params& params, int ctas, cudaStream_t stream) {
  for (std::size_t i = 0; i < kInstances.size(); ++i) {
    if (kInstances[i] == config) return kLaunches[i](params, ctas, stream);
  }
  throw Error(ErrorCode::Internal, "", "cuda mma backward: planned without an instance");
}

Config config_for(Storage storage, int head_dim, int block, std::size_t shared_memory) {
  for (const Config& config : kInstances) {
    const bool divides = block == 0 || block % config.keys == 0;
    if (config.storage == storage && config.head_dim == head_dim && divides &&
        shared_bytes(config) <= shared_memory)
      return config;
  }
  throw Error(ErrorCode::Internal, "", "cuda mma backward: a problem without an instance");
}

}  // namespace msa::cuda::mma::backward
