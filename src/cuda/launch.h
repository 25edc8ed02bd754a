// SPDX-License-Identifier: MIT
// Kernel launches: every one goes through launch_kernel(), which checks it. Include from .cu files.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/check.h"

namespace msa::cuda {

struct LaunchConfig {
  dim3 grid{1};
  dim3 block{1};
  std::size_t shared_bytes = 0;  // dynamic
  // The most that any launch of this kernel asks for; 0: all ask for shared_bytes. The driver keeps
  // one limit a kernel: were it each launch's own, one thread would lower another's.
  std::size_t most_shared_bytes = 0;
  // May start before the launch in front of it ends, on cards that have that: the kernel must
  // griddepcontrol_wait.
  bool programmatic = false;
  unsigned cluster = 1;  // CTAs of a cluster, along x
  cudaStream_t stream = nullptr;
};

/// A grid without CTAs is not launched.
template <class... Params, class... Args>
void launch_kernel(void (*kernel)(Params...), const LaunchConfig& config, const Args&... args) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return;
  constexpr std::size_t kDefaultLimit = 48 * 1024;
  const std::size_t most = std::max(config.most_shared_bytes, config.shared_bytes);
  if (most > kDefaultLimit) {
    MSA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(most)));
  }
  cudaLaunchAttribute attributes[2]{};
  unsigned num_attributes = 0;
  if (config.programmatic && launches_overlap()) {
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
