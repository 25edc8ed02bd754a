// SPDX-License-Identifier: MIT
// The choice of the instance; each is compiled in a file of its own under instances/.
#include "cuda/sm90/backward/launch.h"

#include "cuda/mma/backward/launch.h"

namespace msa::cuda::sm90::backward {

void launch(const Config& config, const Params& params, int ctas, cudaStream_t stream) {
  if (!(config == kTile)) return mma::backward::launch(config, params, ctas, stream);
  const bool keys = params.dk.rows.data != nullptr || params.dv.rows.data != nullptr;
  if (params.shares.steps == nullptr) {
    launch_instance<Wanted{.keys = true, .queries = false}>(params, ctas, stream);
  } else if (keys) {
    launch_instance<Wanted{.keys = true, .queries = true}>(params, ctas, stream);
  } else {
    launch_instance<Wanted{.keys = false, .queries = true}>(params, ctas, stream);
  }
}

}  // namespace msa::cuda::sm90::backward
