// SPDX-License-Identifier: MIT
// Picks the instance of the attention kernel for one storage type.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/sm90/decode/attend.cuh"

namespace msa::cuda::sm90::decode {

template <class Traits>
void launch_attend_instance(const AttendParams& params, cudaStream_t stream) {
  const BatchParams& batch = params.select.batch;
  launch_kernel(
      attend_kernel<Traits>,
      {.grid = dim3(static_cast<unsigned>(params.splits),
                    static_cast<unsigned>(params.heads_kv * params.tiles),
                    static_cast<unsigned>(std::max(batch.batch, 1) * params.select.token_slots)),
       .block = dim3(Traits::kThreads),
       .shared_bytes = static_cast<std::size_t>(attend_shared_bytes<Traits>()),
       .programmatic = true,
       .cluster = clusters(params.splits) ? static_cast<unsigned>(params.splits) : 1,
       .stream = stream},
      params);
}

template <class T>
void launch_attend_storage(const AttendParams& params, cudaStream_t stream) {
  const bool wide = params.select.batch.block_size == 128;
  if (params.dim == 128) {
    if (wide) return launch_attend_instance<AttendTraits<T, 128, 128>>(params, stream);
    return launch_attend_instance<AttendTraits<T, 64, 128>>(params, stream);
  }
  if (wide) return launch_attend_instance<AttendTraits<T, 128, 64>>(params, stream);
  launch_attend_instance<AttendTraits<T, 64, 64>>(params, stream);
}

}  // namespace msa::cuda::sm90::decode
