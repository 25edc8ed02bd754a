// SPDX-License-Identifier: MIT
#include "cuda/common/decode/attend/launch.h"

#include <algorithm>

#include "msa/error.h"

namespace msa::cuda::common::decode {
namespace {

constexpr std::int64_t kCluster = 8;  // CTAs of the largest cluster that runs everywhere

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

std::size_t find_instance(const AttendConfig& config, std::span<const AttendConfig> instances) {
  const auto at = std::find(instances.begin(), instances.end(), config);
  if (at == instances.end())
    throw Error(ErrorCode::Internal, "", "cuda decode: planned without an instance");
  return static_cast<std::size_t>(at - instances.begin());
}

}  // namespace msa::cuda::common::decode
