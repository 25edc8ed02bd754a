// SPDX-License-Identifier: MIT
#include "cuda/sm90/kvouter/launch.h"

#include "cuda/sm90/kvouter/invert.h"

namespace msa::cuda::sm90::kvouter {

void launch(Storage storage, const Params& params, const Maps& maps, int ctas,
            cudaStream_t stream) {
  launch_invert(params, stream);
  const auto launch_chunk = storage == Storage::Bf16 ? launch_bf16 : launch_f16;
  for (int chunk = 0; chunk * params.chunk_tiles < params.tile_limit; ++chunk) {
    launch_chunk(params, maps, chunk, ctas, stream);
  }
}

}  // namespace msa::cuda::sm90::kvouter
