// SPDX-License-Identifier: MIT
// The table of backends, in order of preference.
#include "core/backend.h"

namespace msa::core {

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
