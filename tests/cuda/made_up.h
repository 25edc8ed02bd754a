// SPDX-License-Identifier: MIT
// Made-up GPUs of every kind that the kernels are written for. Builds for all of them, so that
// tests of a narrower build plan for them, too.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda/device.h"

namespace msa::cuda {

GpuInfo made_up(const char* name, int capability, int sms, std::size_t shared_kib,
                std::size_t l2_mib);

extern const GpuInfo kHopper;

/// As A100, A10, L40S, H100, B200 and RTX 5090.
std::vector<GpuInfo> every_kind();

}  // namespace msa::cuda
