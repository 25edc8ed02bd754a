// SPDX-License-Identifier: MIT
// In place of src/cuda/launch.h: a launch has run when it returns.
#pragma once

#include <cuda_runtime.h>

#include <tuple>
#include <type_traits>

#include "cuda/check.h"

namespace msa::cuda {

struct LaunchConfig {
  dim3 grid{1};
  dim3 block{1};
  std::size_t shared_bytes = 0;
  std::size_t most_shared_bytes = 0;
  bool programmatic = false;
  unsigned cluster = 1;
  cudaStream_t stream = nullptr;
};

template <class... Params, class... Args>
void launch_kernel(void (*kernel)(Params...), const LaunchConfig& config, const Args&... args) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return;
  if (config.cluster > 1) emulator::fail("clusters are Hopper's");
  const std::tuple<std::remove_cvref_t<Params>...> params{Params(args)...};
  emulator::run_grid(config.grid, config.block, config.shared_bytes,
                     [&] { std::apply(kernel, params); });
}

}  // namespace msa::cuda
