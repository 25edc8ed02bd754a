// SPDX-License-Identifier: MIT
#include "cuda/sm90/decode/launch.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/sm90/decode/instances.h"
#include "cuda/sm90/decode/select_kernel.cuh"

namespace msa::cuda::sm90::decode {
namespace {

constexpr int kScoreCtasPerSm = 3;    // resident
constexpr int kMostBlocks = 8;        // of a slice: the last round of longer ones left SMs idle
constexpr int kLeastBlocks = 4;       // two steps a warp
constexpr std::int64_t kCluster = 8;  // CTAs of the largest cluster that runs everywhere

}  // namespace

int score_blocks_per_slice(std::int64_t batch, std::int64_t max_blocks, int heads_k,
                           int multiprocessors) {
  const std::int64_t total = std::max<std::int64_t>(1, batch * max_blocks * heads_k);
  const std::int64_t resident = std::int64_t{multiprocessors} * kScoreCtasPerSm;
  const std::int64_t rounds =  // whole ones
      std::max<std::int64_t>(2, ceil_div(total, resident * kMostBlocks));
  const std::int64_t wanted = ceil_div(total, resident * rounds);
  return static_cast<int>(std::clamp<std::int64_t>(wanted, kLeastBlocks, kMostBlocks));
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
       .shared_bytes =
           static_cast<std::size_t>(select_candidates(params.topk, params.max_blocks)) * 8,
       .programmatic = true,
       .stream = stream},
      params);
}

}  // namespace msa::cuda::sm90::decode
