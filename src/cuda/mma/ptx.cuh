// SPDX-License-Identifier: MIT
// The instructions of compute capability 8.0 and up are common/ptx: this path has no others.
#pragma once

#include "cuda/common/ptx/bar_sync.cuh"
#include "cuda/common/ptx/cp_async.cuh"
#include "cuda/common/ptx/laneid.cuh"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/ptx/matrix.cuh"

namespace msa::cuda::mma {

namespace ptx = common::ptx;

}  // namespace msa::cuda::mma
