// SPDX-License-Identifier: MIT
#include "tests/cuda/made_up.h"

namespace msa::cuda {
namespace {

constexpr Compiled kAll[] = {{80, false},  {86, false},  {89, false}, {90, false},
                             {100, false}, {120, false}, {120, true}};

}  // namespace

GpuInfo made_up(const char* name, int capability, int sms, std::size_t shared_kib,
                std::size_t l2_mib) {
  return {.name = name,
          .major = capability / 10,
          .minor = capability % 10,
          .multiprocessors = sms,
          .shared_memory = shared_kib << 10,
          .l2_bytes = l2_mib << 20,
          .compiled = kAll};
}

const GpuInfo kHopper = made_up("made up", 90, 132, 227, 50);

std::vector<GpuInfo> every_kind() {
  return {made_up("kind of 8.0", 80, 108, 163, 40),    made_up("kind of 8.6", 86, 72, 99, 6),
          made_up("kind of 8.9", 89, 142, 99, 96),     made_up("kind of 9.0", 90, 132, 227, 50),
          made_up("kind of 10.0", 100, 148, 227, 126), made_up("kind of 12.0", 120, 170, 99, 96)};
}

}  // namespace msa::cuda
