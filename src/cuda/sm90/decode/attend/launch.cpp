// SPDX-License-Identifier: MIT
// The table of instances; each is compiled in a file of its own under instances/.
#include "cuda/sm90/decode/attend/launch.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "msa/error.h"

namespace msa::cuda::sm90::decode {
namespace {

constexpr std::int64_t kCluster = 8;  // CTAs of the largest cluster that runs everywhere

constexpr std::array kInstances = {
    AttendConfig{.storage = Storage::Bf16, .block = 128, .dim = 128},
    AttendConfig{.storage = Storage::Bf16, .block = 64, .dim = 128},
    AttendConfig{.storage = Storage::Bf16, .block = 128, .dim = 64},
    AttendConfig{.storage = Storage::Bf16, .block = 64, .dim = 64},
    AttendConfig{.storage = Storage::F16, .block = 128, .dim = 128},
    AttendConfig{.storage = Storage::F16, .block = 64, .dim = 128},
    AttendConfig{.storage = Storage::F16, .block = 128, .dim = 64},
    AttendConfig{.storage = Storage::F16, .block = 64, .dim = 64},
    AttendConfig{.storage = Storage::Bf16, .block = 128, .dim = 128, .kv = Storage::E4m3},
    AttendConfig{.storage = Storage::Bf16, .block = 64, .dim = 128, .kv = Storage::E4m3},
    AttendConfig{.storage = Storage::F16, .block = 128, .dim = 128, .kv = Storage::E4m3},
    AttendConfig{.storage = Storage::F16, .block = 64, .dim = 128, .kv = Storage::E4m3},
    AttendConfig{.storage = Storage::Bf16, .block = 128, .dim = 128, .kv = Storage::E2m1},
    AttendConfig{.storage = Storage::Bf16, .block = 64, .dim = 128, .kv = Storage::E2m1},
    AttendConfig{.storage = Storage::F16, .block = 128, .dim = 128, .kv = Storage::E2m1},
    AttendConfig{.storage = Storage::F16, .block = 64, .dim = 128, .kv = Storage::E2m1},
};

// Kernels that share tiles between rows, and leave some to mending, unpack four bits before.
constexpr std::size_t kMended =
    kInstances.size() - std::ranges::count(kInstances, Storage::E2m1, &AttendConfig::kv);

using LaunchAttend = void (*)(const AttendParams&, cudaStream_t);
using LaunchMend = void (*)(const MendParams&, int, cudaStream_t);

template <std::size_t... kIndices>
constexpr std::array<LaunchAttend, sizeof...(kIndices)> attends(std::index_sequence<kIndices...>) {
  return {&launch_attend_instance<kInstances[kIndices]>...};
}
template <std::size_t... kIndices>
constexpr std::array<LaunchMend, sizeof...(kIndices)> mends(std::index_sequence<kIndices...>) {
  return {&launch_mend_instance<kInstances[kIndices]>...};
}

constexpr auto kAttends = attends(std::make_index_sequence<kInstances.size()>{});
constexpr auto kMends = mends(std::make_index_sequence<kMended>{});

/// Among the first `count` of the table.
std::size_t find(const AttendConfig& config, std::size_t count) {
  const auto end = kInstances.begin() + count;
  const auto at = std::find(kInstances.begin(), end, config);
  if (at == end) throw Error(ErrorCode::Internal, "", "cuda decode: planned without an instance");
  return static_cast<std::size_t>(at - kInstances.begin());
}

}  // namespace

int attend_splits(std::int64_t rows, int heads_kv, int group, std::int64_t max_entries,
                  int multiprocessors) {
  const std::int64_t tiles = std::max<std::int64_t>(1, rows * heads_kv * head_tiles(group));
  // Two CTAs an SM: never a second, nearly empty round.
  const std::int64_t most = std::clamp<std::int64_t>(2 * multiprocessors / tiles, 1,
                                                     std::max<std::int64_t>(1, max_entries));
  if (max_entries > kMaxTopk && most > kCluster) return static_cast<int>(most);
  std::int64_t splits = 1;  // a power of two: they merge as a cluster
  while (2 * splits <= std::min(most, kCluster)) splits *= 2;
  return static_cast<int>(splits);
}

void launch_attend(const AttendConfig& config, const AttendParams& params, cudaStream_t stream) {
  kAttends[find(config, kAttends.size())](params, stream);
}

void launch_mend(const AttendConfig& config, const MendParams& params, int multiprocessors,
                 cudaStream_t stream) {
  kMends[find(config, kMends.size())](params, multiprocessors, stream);
}

}  // namespace msa::cuda::sm90::decode
