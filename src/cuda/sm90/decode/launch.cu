// SPDX-License-Identifier: MIT
#include "cuda/sm90/decode/launch.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/sm90/decode/instances.h"
#include "cuda/sm90/decode/select_kernel.cuh"

namespace msa::cuda::sm90::decode {
namespace {

constexpr std::int64_t kCluster = 8;  // CTAs of the largest cluster that runs everywhere

}  // namespace

int score_ctas(std::int64_t batch, std::int64_t max_seqlen_k, int heads_k, int multiprocessors) {
  const std::int64_t steps = batch * ceil_div(max_seqlen_k, kScoreStep);
  const std::int64_t share = multiprocessors / heads_k;
  return static_cast<int>(std::clamp<std::int64_t>(steps, 1, std::max<std::int64_t>(1, share)));
}

int attend_splits(std::int64_t rows, int heads_kv, int group, std::int64_t max_entries,
                  int multiprocessors) {
  const std::int64_t tiles = std::max<std::int64_t>(1, rows * heads_kv * head_tiles(group));
  // Two CTAs an SM: never a second, nearly empty round.
  const std::int64_t most = std::clamp<std::int64_t>(2 * multiprocessors / tiles, 1,
                                                     std::max<std::int64_t>(1, max_entries));
  if (max_entries > kMaxTopk && most > kCluster) return static_cast<int>(most);
  std::int64_t splits = 1;  // a power of two: they merge as a cluster
  while (2 * splits <= std::min(most, kCluster)) splits *= 2;
  return static_cast<int>(splits);
}

void launch_score(Storage storage, const ScoreParams& params, cudaStream_t stream) {
  storage == Storage::Bf16 ? launch_score_bf16(params, stream) : launch_score_f16(params, stream);
}

void launch_attend(Storage storage, const AttendParams& params, cudaStream_t stream) {
  storage == Storage::Bf16 ? launch_attend_bf16(params, stream) : launch_attend_f16(params, stream);
}

void launch_fill(const ScoreRows& rows, std::int64_t total, int heads, std::int64_t blocks,
                 cudaStream_t stream) {
  const std::int64_t ctas = ceil_div(total * heads * blocks, kSelectThreads);
  constexpr std::int64_t kMostCtas = 1024;
  launch_kernel(fill_kernel,
                {.grid = dim3(static_cast<unsigned>(std::min(ctas, kMostCtas))),
                 .block = dim3(kSelectThreads),
                 .stream = stream},
                rows, total, heads, blocks);
}

void launch_select(const SelectParams& params, cudaStream_t stream) {
  launch_kernel(
      select_kernel,
      {.grid = dim3(static_cast<unsigned>(params.heads),
                    static_cast<unsigned>(std::max(params.batch.batch, 1) * params.token_slots)),
       .block = dim3(kSelectThreads),
       .shared_bytes = static_cast<std::size_t>(
           select_scratch_bytes(params.topk, params.max_blocks, params.lanes)),
       .programmatic = true,
       .stream = stream},
      params);
}

}  // namespace msa::cuda::sm90::decode
