// SPDX-License-Identifier: MIT
// The table of instances; each is compiled in a file of its own under instances/.
#include "cuda/sm90/attend/launch.h"

#include <array>
#include <cstddef>
#include <utility>

#include "msa/error.h"

namespace msa::cuda::sm90::attend {
namespace {

constexpr std::array kInstances = {
    Config{.storage = Storage::Bf16, .head_dim = 128, .block = 128, .walk = Walk::Dense},
    Config{.storage = Storage::F16, .head_dim = 128, .block = 128, .walk = Walk::Dense},
    Config{.storage = Storage::Bf16, .head_dim = 64, .block = 128, .walk = Walk::Dense},
    Config{.storage = Storage::F16, .head_dim = 64, .block = 128, .walk = Walk::Dense},
    Config{.storage = Storage::Bf16, .head_dim = 128, .block = 128, .walk = Walk::Union},
    Config{.storage = Storage::F16, .head_dim = 128, .block = 128, .walk = Walk::Union},
    Config{.storage = Storage::Bf16, .head_dim = 64, .block = 128, .walk = Walk::Union},
    Config{.storage = Storage::F16, .head_dim = 64, .block = 128, .walk = Walk::Union},
    Config{.storage = Storage::Bf16, .head_dim = 128, .block = 64, .walk = Walk::Union},
    Config{.storage = Storage::F16, .head_dim = 128, .block = 64, .walk = Walk::Union},
    Config{.storage = Storage::Bf16, .head_dim = 64, .block = 64, .walk = Walk::Union},
    Config{.storage = Storage::F16, .head_dim = 64, .block = 64, .walk = Walk::Union},
    Config{.storage = Storage::Bf16,
           .head_dim = 128,
           .block = 128,
           .walk = Walk::Dense,
           .kv = Storage::E4m3},
    Config{.storage = Storage::Bf16,
           .head_dim = 128,
           .block = 128,
           .walk = Walk::Union,
           .kv = Storage::E4m3},
    Config{.storage = Storage::Bf16,
           .head_dim = 128,
           .block = 64,
           .walk = Walk::Union,
           .kv = Storage::E4m3},
    Config{.storage = Storage::F16,
           .head_dim = 128,
           .block = 128,
           .walk = Walk::Dense,
           .kv = Storage::E4m3},
    Config{.storage = Storage::F16,
           .head_dim = 128,
           .block = 128,
           .walk = Walk::Union,
           .kv = Storage::E4m3},
    Config{.storage = Storage::F16,
           .head_dim = 128,
           .block = 64,
           .walk = Walk::Union,
           .kv = Storage::E4m3},
    Config{.storage = Storage::Bf16,
           .head_dim = 128,
           .block = 128,
           .walk = Walk::Dense,
           .folds = true},
    Config{.storage = Storage::Bf16,
           .head_dim = 128,
           .block = 128,
           .walk = Walk::Union,
           .folds = true},
    Config{
        .storage = Storage::Bf16, .head_dim = 128, .block = 64, .walk = Walk::Union, .folds = true},
    Config{
        .storage = Storage::F16, .head_dim = 128, .block = 128, .walk = Walk::Dense, .folds = true},
    Config{
        .storage = Storage::F16, .head_dim = 128, .block = 128, .walk = Walk::Union, .folds = true},
    Config{
        .storage = Storage::F16, .head_dim = 128, .block = 64, .walk = Walk::Union, .folds = true},
};

using Launch = void (*)(const Params&, const Maps&, int, cudaStream_t);

template <std::size_t... kIndices>
constexpr std::array<Launch, sizeof...(kIndices)> launches(std::index_sequence<kIndices...>) {
  return {&launch_instance<kInstances[kIndices]>...};
}

constexpr auto kLaunches = launches(std::make_index_sequence<kInstances.size()>{});

/// Index of the instance, or -1.
int find(const Config& config) {
  for (std::size_t i = 0; i < kInstances.size(); ++i) {
    if (kInstances[i] == config) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace

void launch(const Config& config, const Params& params, const Maps& maps, int ctas,
            cudaStream_t stream) {
  const int index = find(config);
  if (index < 0) throw Error(ErrorCode::Internal, "", "cuda attend: planned without an instance");
  kLaunches[static_cast<std::size_t>(index)](params, maps, ctas, stream);
}

}  // namespace msa::cuda::sm90::attend
