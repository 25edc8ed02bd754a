// SPDX-License-Identifier: MIT
// Launcher of the scoring kernels of one item type and index dim; one .cu file instantiates each.
#pragma once

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/sm90/select/score.cuh"

namespace msa::cuda::sm90::select {

template <ScoreConfig kConfig>
void launch_score_config(const ScoreParams& params, const CUtensorMap& key_map, int ctas,
                         cudaStream_t stream) {
  using Traits = ScoreTraits<kConfig>;
  const std::int64_t items = params.num_tiles * params.spans * params.groups;
  launch_kernel(score_blocks<Traits>,
                {.grid = dim3(static_cast<unsigned>(std::min<std::int64_t>(items, ctas))),
                 .block = Traits::kThreads,
                 .shared_bytes = Traits::kSharedBytes,
                 .programmatic = true,
                 .stream = stream},
                params, key_map);
}

template <bool kBf16, int kDim>
void launch_scores(const ScoreParams& params, const CUtensorMap& key_map, bool scratch, int ctas,
                   cudaStream_t stream) {
  const bool wide = params.batch.block_size == 128;
  const auto pick = [&](auto* wide_launch, auto* narrow_launch) {
    (wide ? wide_launch : narrow_launch)(params, key_map, ctas, stream);
  };
  if (scratch) {
    pick(launch_score_config<ScoreConfig{kBf16, kDim, 128, true}>,
         launch_score_config<ScoreConfig{kBf16, kDim, 64, true}>);
  } else {
    pick(launch_score_config<ScoreConfig{kBf16, kDim, 128, false}>,
         launch_score_config<ScoreConfig{kBf16, kDim, 64, false}>);
  }
}

}  // namespace msa::cuda::sm90::select
