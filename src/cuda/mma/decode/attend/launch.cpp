// SPDX-License-Identifier: MIT
// The table of instances; each is compiled in a file of its own under instances/.
#include "cuda/mma/decode/attend/launch.h"

#include <array>
#include <cstddef>
#include <utility>

namespace msa::cuda::mma::decode {
namespace {

using common::decode::find_instance;
using common::decode::kAttendInstances;

using LaunchAttend = void (*)(const AttendParams&, cudaStream_t);
using LaunchMend = void (*)(const MendParams&, int, cudaStream_t);

template <std::size_t... kIndices>
constexpr std::array<LaunchAttend, sizeof...(kIndices)> attends(std::index_sequence<kIndices...>) {
  return {&launch_attend_instance<kAttendInstances[kIndices]>...};
}
template <std::size_t... kIndices>
constexpr std::array<LaunchMend, sizeof...(kIndices)> mends(std::index_sequence<kIndices...>) {
  return {&launch_mend_instance<kMendInstances[kIndices]>...};
}

constexpr auto kAttends = attends(std::make_index_sequence<kAttendInstances.size()>{});
constexpr auto kMends = mends(std::make_index_sequence<kMendInstances.size()>{});

}  // namespace

void launch_attend(const AttendConfig& config, const AttendParams& params, cudaStream_t stream) {
  kAttends[find_instance(config, kAttendInstances)](params, stream);
}

void launch_mend(const AttendConfig& config, const MendParams& params, int multiprocessors,
                 cudaStream_t stream) {
  kMends[find_instance(config, kMendInstances)](params, multiprocessors, stream);
}

}  // namespace msa::cuda::mma::decode
