// SPDX-License-Identifier: MIT
// A GPU's memory as a MemorySpace, on a stream of its own. Builds without CUDA answer nullptr.
#pragma once

#include <memory>

#include "testkit/memory.h"

namespace msa::testkit {

/// nullptr where this build has no CUDA; throws Error(ErrorCode::Device) where the device does not
/// answer.
std::unique_ptr<MemorySpace> cuda_memory(int device);

}  // namespace msa::testkit
