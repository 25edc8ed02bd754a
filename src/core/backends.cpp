// SPDX-License-Identifier: MIT
// The table of backends, in order of preference.
#include "core/backend.h"

#include "msa/error.h"

namespace msa::core {

void Backend::no_peers() const {
  const std::string backend(name());
  throw Error(
      ErrorCode::Unsupported, "device",
      "device: expected a build with CUDA, as " + backend + " reads no other rank's memory");
}

void Planned::no_peers() const {
  throw Error(
      ErrorCode::Unsupported, "plan",
      "plan: expected one with a way among ranks, got one of " + backend + ": " + decisions());
}

std::span<const Backend* const> backends() {
  static const Backend* const table[] = {
#ifdef MSA_WITH_CUDA
      &cuda_backend(),
#endif
      &cpu_backend(),
      &reference_backend(),
  };
  return table;
}

}  // namespace msa::core
