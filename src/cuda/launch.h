// SPDX-License-Identifier: MIT
// Kernel launches: every one goes through launch_kernel(), which checks it. Include from .cu files.
#pragma once

#include <cuda_runtime.h>

#include "cuda/device.h"

namespace msa::cuda {

struct LaunchConfig {
  dim3 grid{1};
  dim3 block{1};
  std::size_t shared_bytes = 0;  // dynamic
  bool programmatic = false;     // may start before the launch in front of it ends: the kernel must
                                 // griddepcontrol_wait
  unsigned cluster = 1;          // CTAs of a cluster, along x
  cudaStream_t stream = nullptr;
};

/// A grid without CTAs is not launched.
template <class... Params, class... Args>
void launch_kernel(void (*kernel)(Params...), const LaunchConfig& config, const Args&... args) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return;
  constexpr std::size_t kDefaultLimit = 48 * 1024;
  if (config.shared_bytes > kDefaultLimit) {
    MSA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(config.shared_bytes)));
  }
  cudaLaunchAttribute attributes[2]{};
  unsigned num_attributes = 0;
  if (config.programmatic) {
    cudaLaunchAttribute& attribute = attributes[num_attributes++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (config.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[num_attributes++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {config.cluster, 1, 1};
  }
  cudaLaunchConfig_t native{};
  native.gridDim = config.grid;
  native.blockDim = config.block;
  native.dynamicSmemBytes = config.shared_bytes;
  native.stream = config.stream;
  native.attrs = attributes;
  native.numAttrs = num_attributes;
  MSA_CUDA_CHECK(cudaLaunchKernelEx(&native, kernel, Params(args)...));
}

}  // namespace msa::cuda
