// SPDX-License-Identifier: MIT
// The ring of common/tile, filled by the copy engine.
#pragma once

#include "cuda/common/tile/align.cuh"
#include "cuda/common/tile/pipeline.cuh"

namespace msa::cuda::sm90 {

using common::align_shared;
using common::Ring;
using common::RingPosition;
using common::wait;

}  // namespace msa::cuda::sm90
