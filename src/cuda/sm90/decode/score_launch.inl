// SPDX-License-Identifier: MIT
// Picks the instance of the scoring kernel for one storage type.
#include "cuda/launch.h"
#include "cuda/sm90/decode/score.cuh"

namespace msa::cuda::sm90::decode {

template <class Traits>
void launch_score_instance(const ScoreParams& params, cudaStream_t stream) {
  launch_kernel(
      score_kernel<Traits>,
      {.grid = dim3(static_cast<unsigned>(params.ctas), static_cast<unsigned>(params.heads_k)),
       .block = dim3(Traits::kThreads),
       .shared_bytes = static_cast<std::size_t>(score_shared_bytes<Traits>()),
       .programmatic = true,
       .stream = stream},
      params);
}

template <class T, int kDim>
void launch_score_columns(const ScoreParams& params, cudaStream_t stream) {
  const std::int64_t columns = params.batch.max_seqlen_q * (params.heads / params.heads_k);
  if (columns <= 8) return launch_score_instance<ScoreTraits<T, 1, kDim>>(params, stream);
  if (columns <= 16) return launch_score_instance<ScoreTraits<T, 2, kDim>>(params, stream);
  launch_score_instance<ScoreTraits<T, 4, kDim>>(params, stream);
}

template <class T>
void launch_score_storage(const ScoreParams& params, cudaStream_t stream) {
  if (params.dim == 64) return launch_score_columns<T, 64>(params, stream);
  launch_score_columns<T, 128>(params, stream);
}

}  // namespace msa::cuda::sm90::decode
