// SPDX-License-Identifier: MIT
// The one instance is compiled in a file of its own under instances/.
#include "cuda/sm90/backward_shares/launch.h"

namespace msa::cuda::sm90::backward_shares {

void launch(const Params& params, const Maps& maps, int ctas, cudaStream_t stream) {
  launch_instance<kTile>(params, maps, ctas, stream);
}

}  // namespace msa::cuda::sm90::backward_shares
