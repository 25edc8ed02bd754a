// SPDX-License-Identifier: MIT
// Host side of the attention kernel: which instances there are and how to start one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/mma/attend/config.h"

namespace msa::cuda::mma::attend {

/// Defined in instances/*.cu, one each.
template <Config cfg>
void launch_instance(const Params& params, cudaStream_t stream);

void launch(const Config& config, const Params& params, cudaStream_t stream);

/// CTAs of a config that an SM holds at once.
int ctas_per_sm(const Config& config);

/// Of a Config.
struct Shape {
  int warps;
  int stages;
  friend constexpr bool operator==(const Shape&, const Shape&) = default;
};

/// On a card of that compute capability, times 10, where a CTA may take so much shared memory.
Shape shape_for(int capability, std::size_t shared_memory, int head_dim, bool key_scales);

}  // namespace msa::cuda::mma::attend
