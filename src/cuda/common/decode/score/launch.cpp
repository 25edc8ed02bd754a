// SPDX-License-Identifier: MIT
#include "cuda/common/decode/score/launch.h"

#include <algorithm>

#include "core/geometry.h"
#include "msa/error.h"

namespace msa::cuda::common::decode {

using core::ceil_div;

int score_ctas(std::int64_t batch, std::int64_t max_seqlen_k, int heads_k, int multiprocessors) {
  const std::int64_t steps = batch * ceil_div(max_seqlen_k, kScoreStep);
  const std::int64_t share = multiprocessors / heads_k;
  return static_cast<int>(std::clamp<std::int64_t>(steps, 1, std::max<std::int64_t>(1, share)));
}

std::size_t find_instance(const ScoreConfig& config, std::span<const ScoreConfig> instances) {
  const auto at = std::find(instances.begin(), instances.end(), config);
  if (at == instances.end())
    throw Error(ErrorCode::Internal, "", "cuda decode: planned without an instance");
  return static_cast<std::size_t>(at - instances.begin());
}

}  // namespace msa::cuda::common::decode
