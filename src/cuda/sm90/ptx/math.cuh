// SPDX-License-Identifier: MIT
// The arithmetic of common/ptx, beside the instructions of this architecture.
#pragma once

#include "cuda/common/ptx/math.cuh"

namespace msa::cuda::sm90::ptx {

using common::ptx::cvt_pack;
using common::ptx::cvt_unpack;
using common::ptx::e4m3_to_float;
using common::ptx::ex2;
using common::ptx::lg2;
using common::ptx::max_nan;
using common::ptx::prmt;
using common::ptx::round_to_e4m3;
using common::ptx::vimax3;
using common::ptx::widen_e4m3x2;
using common::ptx::widen_e4m3x4;

}  // namespace msa::cuda::sm90::ptx
