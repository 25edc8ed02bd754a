// SPDX-License-Identifier: MIT
// Host side of the attention kernel: which instances there are and how to start one.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/sm90/attend/config.h"

namespace msa::cuda::sm90::attend {

/// Defined in instances/*.cu, one each.
template <Config cfg>
void launch_instance(const Params& params, const Maps& maps, int ctas, cudaStream_t stream);

/// `ctas`: one a multiprocessor.
void launch(const Config& config, const Params& params, const Maps& maps, int ctas,
            cudaStream_t stream);

}  // namespace msa::cuda::sm90::attend
