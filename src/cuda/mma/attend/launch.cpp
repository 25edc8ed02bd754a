// SPDX-License-Identifier: MIT
// The table of instances; each is compiled in a file of its own under instances/.
#include "cuda/mma/attend/launch.h"

#include <array>
#include <utility>

#include "msa/error.h"

namespace msa::cuda::mma::attend {
namespace {

constexpr std::array kInstances = {
    Config{.storage = Storage::Bf16, .head_dim = 128, .walk = Walk::Dense, .warps = 4, .stages = 4},
    Config{.storage = Storage::Bf16, .head_dim = 128, .walk = Walk::Dense, .warps = 4, .stages = 3},
    Config{.storage = Storage::Bf16, .head_dim = 128, .walk = Walk::Dense, .warps = 8, .stages = 4},
    Config{.storage = Storage::Bf16, .head_dim = 64, .walk = Walk::Dense, .warps = 4, .stages = 4},
    Config{.storage = Storage::Bf16, .head_dim = 128, .walk = Walk::Union, .warps = 4, .stages = 4},
    Config{.storage = Storage::Bf16, .head_dim = 128, .walk = Walk::Union, .warps = 4, .stages = 3},
    Config{.storage = Storage::Bf16, .head_dim = 128, .walk = Walk::Union, .warps = 8, .stages = 4},
    Config{.storage = Storage::Bf16, .head_dim = 64, .walk = Walk::Union, .warps = 4, .stages = 4},
    Config{.storage = Storage::F16, .head_dim = 128, .walk = Walk::Dense, .warps = 4, .stages = 4},
    Config{.storage = Storage::F16, .head_dim = 128, .walk = Walk::Dense, .warps = 4, .stages = 3},
    Config{.storage = Storage::F16, .head_dim = 128, .walk = Walk::Dense, .warps = 8, .stages = 4},
    Config{.storage = Storage::F16, .head_dim = 64, .walk = Walk::Dense, .warps = 4, .stages = 4},
    Config{.storage = Storage::F16, .head_dim = 128, .walk = Walk::Union, .warps = 4, .stages = 4},
    Config{.storage = Storage::F16, .head_dim = 128, .walk = Walk::Union, .warps = 4, .stages = 3},
    Config{.storage = Storage::F16, .head_dim = 128, .walk = Walk::Union, .warps = 8, .stages = 4},
    Config{.storage = Storage::F16, .head_dim = 64, .walk = Walk::Union, .warps = 4, .stages = 4},
    Config{.storage = Storage::Bf16,
           .head_dim = 128,
           .walk = Walk::Dense,
           .warps = 8,
           .stages = 4,
           .key_scales = true},
    Config{.storage = Storage::Bf16,
           .head_dim = 128,
           .walk = Walk::Union,
           .warps = 8,
           .stages = 4,
           .key_scales = true},
};

using Launch = void (*)(const Params&, cudaStream_t);

template <std::size_t... kIndices>
constexpr std::array<Launch, sizeof...(kIndices)> launches(std::index_sequence<kIndices...>) {
  return {&launch_instance<kInstances[kIndices]>...};
}

constexpr auto kLaunches = launches(std::make_index_sequence<kInstances.size()>{});

}  // namespace

void launch(const Config& config, const Params& params, cudaStream_t stream) {
  for (std::size_t i = 0; i < kInstances.size(); ++i) {
    if (kInstances[i] == config) return kLaunches[i](params, stream);
  }
  throw Error(ErrorCode::Internal, "", "cuda mma attend: planned without an instance");
}

int ctas_per_sm(const Config& config) { return config.warps == 4 ? 2 : 1; }

Shape shape_for(int capability, std::size_t shared_memory, int head_dim, bool key_scales) {
  // An SM has a kilobyte more than one CTA may take, and keeps one for each.
  constexpr std::size_t kReserved = 1024;
  for (const int stages : {4, 3}) {
    const Config config{.head_dim = head_dim, .warps = 4, .stages = stages};
    const std::size_t cta =
        static_cast<std::size_t>(tile_bytes(head_dim, stages)) + kBesideTiles + kReserved;
    // With scales beside the weights of 32 rows, four warps spill.
    if (!key_scales && is_compiled_for(config, capability) && 2 * cta <= shared_memory + kReserved)
      return {4, stages};
  }
  return {8, 4};
}

}  // namespace msa::cuda::mma::attend
