// SPDX-License-Identifier: MIT
#include "cuda/sm90/index_loss/launch.h"

#include "cuda/mma/index_loss/launch.h"

namespace msa::cuda::sm90::index_loss {

void launch(const Config& config, const Params& params, int ctas, cudaStream_t stream) {
  if (config == kTile && params.student_shares == nullptr)
    return index_loss::launch_instance<kTile>(params, ctas, stream);
  mma::index_loss::launch(config, params, ctas, stream);
}

}  // namespace msa::cuda::sm90::index_loss
