// SPDX-License-Identifier: MIT
// Programmatic launch control (PTX ISA 9.7.14): a launch may start before the one in front of it
// ends. Nothing on architectures below 9.0, where launches follow each other.
#pragma once

namespace msa::cuda::common::ptx {

/// Waits until the launches that this one depends on have finished and their writes are visible.
__device__ __forceinline__ void griddepcontrol_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the dependent launch start; it sees this grid's writes only after griddepcontrol_wait.
__device__ __forceinline__ void griddepcontrol_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace msa::cuda::common::ptx
