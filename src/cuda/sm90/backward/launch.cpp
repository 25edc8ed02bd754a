// SPDX-License-Identifier: MIT
// The choice of the instance; each is compiled in a file of its own under instances/.
#include "cuda/sm90/backward/launch.h"

namespace msa::cuda::sm90::backward {

void launch(const Params& params, const Maps& maps, int ctas, cudaStream_t stream) {
  const bool keys = params.dk.rows.data != nullptr || params.dv.rows.data != nullptr;
  if (params.shares.steps == nullptr) {
    launch_instance<Wanted{.keys = true, .queries = false}>(params, maps, ctas, stream);
  } else if (keys) {
    launch_instance<Wanted{.keys = true, .queries = true}>(params, maps, ctas, stream);
  } else {
    launch_instance<Wanted{.keys = false, .queries = true}>(params, maps, ctas, stream);
  }
}

}  // namespace msa::cuda::sm90::backward
