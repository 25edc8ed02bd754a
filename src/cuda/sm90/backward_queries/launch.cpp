// SPDX-License-Identifier: MIT
// The choice of the instance; each is compiled in a file of its own under instances/.
#include "cuda/sm90/backward_queries/launch.h"

namespace msa::cuda::sm90::backward_queries {

void launch(Walk walk, const Params& params, const Maps& maps, int ctas, cudaStream_t stream) {
  const auto chosen =
      walk == Walk::Union ? &launch_instance<Walk::Union> : &launch_instance<Walk::Dense>;
  chosen(params, maps, ctas, stream);
}

}  // namespace msa::cuda::sm90::backward_queries
