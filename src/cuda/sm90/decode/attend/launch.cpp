// SPDX-License-Identifier: MIT
// The table of instances; each is compiled in a file of its own under instances/.
#include "cuda/sm90/decode/attend/launch.h"

#include <array>
#include <cstddef>
#include <span>
#include <utility>

namespace msa::cuda::sm90::decode {
namespace {

using common::decode::find_instance;
using common::decode::kAttendInstances;
using common::decode::kMendInstances;
using common::decode::kRanksInstances;

using LaunchAttend = void (*)(const AttendParams&, cudaStream_t);
using LaunchMend = void (*)(const MendParams&, int, cudaStream_t);

template <std::size_t... kIndices>
constexpr std::array<LaunchAttend, sizeof...(kIndices)> attends(std::index_sequence<kIndices...>) {
  return {&launch_attend_instance<kAttendInstances[kIndices]>...};
}
template <std::size_t... kIndices>
constexpr std::array<LaunchMend, sizeof...(kIndices)> mends(std::index_sequence<kIndices...>) {
  return {&launch_mend_instance<kAttendInstances[kIndices]>...};
}

template <std::size_t... kIndices>
constexpr auto ranks_attends(std::index_sequence<kIndices...>) {
  using Launch = void (*)(const RanksAttendParams&, cudaStream_t);
  return std::array<Launch, sizeof...(kIndices)>{
      &launch_attend_ranks_instance<kRanksInstances[kIndices]>...};
}

constexpr auto kRanksAttends = ranks_attends(std::make_index_sequence<kRanksInstances.size()>{});
constexpr auto kAttends = attends(std::make_index_sequence<kAttendInstances.size()>{});
constexpr auto kMends = mends(std::make_index_sequence<kMendInstances>{});

}  // namespace

void launch_attend(const AttendConfig& config, const AttendParams& params, cudaStream_t stream) {
  kAttends[find_instance(config, kAttendInstances)](params, stream);
}

void launch_attend_ranks(const AttendConfig& config, const RanksAttendParams& params,
                         cudaStream_t stream) {
  kRanksAttends[find_instance(config, kRanksInstances)](params, stream);
}

void launch_mend(const AttendConfig& config, const MendParams& params, int multiprocessors,
                 cudaStream_t stream) {
  const auto instances = std::span(kAttendInstances).first<kMendInstances>();
  kMends[find_instance(config, instances)](params, multiprocessors, stream);
}

}  // namespace msa::cuda::sm90::decode
