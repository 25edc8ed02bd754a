// SPDX-License-Identifier: MIT
// Which item of a tile a thread holds: a wgmma accumulator has the order of mma.sync.
#pragma once

#include "cuda/common/tile/fragment.cuh"

namespace msa::cuda::sm90 {

using common::fragment_column;
using common::fragment_row;
using common::mask_fragment;
namespace quad = common::quad;

}  // namespace msa::cuda::sm90
