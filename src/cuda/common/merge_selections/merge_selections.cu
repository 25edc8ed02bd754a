// SPDX-License-Identifier: MIT
// One warp a (query row, KV head): gathers the candidates as keys whose order is that of
// preference, keeps the k best by a search over the bits of the k-th key, writes them by ascending
// id. See docs/kernels/merge.md.
#include <algorithm>

#include "cuda/common/lists.cuh"
#include "cuda/common/merge_selections/keys.cuh"
#include "cuda/common/merge_selections/launch.h"
#include "cuda/common/rows.cuh"
#include "cuda/geometry.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::merge_selections {
namespace {

constexpr int kMaxWarps = 8;
constexpr int kKeyBytes = 48 << 10;  // of a CTA, unless one row needs more (16,384 keys: 128 KiB)

/// All candidates of one row; returns how many. Ids below -1 count as not visible.
__device__ __forceinline__ int gather(const Params& p, std::int64_t token, std::int64_t head,
                                      int lane, Key* keys) {
  int count = 0;
  for (int n = 0; n < p.num_parts; ++n) {
    const Part& part = p.parts[n];
    const float* scores = slots_of(part.scores, token, head);
    warp::for_each_listed(part.lists, ListReader(), token, head, lane,
                          [&](int slot, const ListedBlock& listed) {
                            if (listed.fault) report(p.status, 0, token, FaultKind::BlockId);
                            const unsigned lanes = __ballot_sync(kAllLanes, listed.block >= 0);
                            if (listed.block >= 0) {
                              keys[count + __popc(lanes & lanes_below(lane))] =
                                  make_key(scores[slot * part.scores.stride_slot], listed.block);
                            }
                            count += __popc(lanes);
                          });
  }
  __syncwarp();
  return count;
}

/// Each key goes to the slot that its id's rank is; equal ids, the caller's fault, rank by place.
__device__ __forceinline__ void write_row(const Params& p, std::int64_t token, std::int64_t head,
                                          const Key* keys, int count, int lane) {
  int* ids = slots_of(p.ids, token, head);
  float* chosen = p.chosen.data == nullptr ? nullptr : slots_of(p.chosen, token, head);
  const auto write = [&](int slot, int id, float score) {
    ids[slot * p.ids.stride_slot] = id;
    if (chosen != nullptr) chosen[slot * p.chosen.stride_slot] = score;
  };
  for (int i = lane; i < count; i += 32) {
    const int id = id_of(keys[i]);
    int rank = 0;
    for (int j = 0; j < count; ++j) {
      const int other = id_of(keys[j]);
      rank += other < id || (other == id && j < i) ? 1 : 0;
    }
    write(rank, id, score_of(keys[i]));
  }
  for (int slot = count + lane; slot < p.k; slot += 32) write(slot, -1, kMinusInf);
}

__global__ void __launch_bounds__(kMaxWarps * 32)
    kernel(const __grid_constant__ Params p, int capacity) {
  extern __shared__ Key keys_of_cta[];  // [warps, capacity]
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const std::int64_t row = std::int64_t{blockIdx.x} * (blockDim.x / 32) + warp;
  if (row >= p.rows) return;
  const std::int64_t token = static_cast<int>(row) / p.heads;
  const std::int64_t head = row - token * p.heads;
  Key* keys = keys_of_cta + warp * capacity;
  const int count = gather(p, token, head, lane, keys);
  if (count > p.k) keep_best(keys, count, p.k, lane);
  write_row(p, token, head, keys, min(count, p.k), lane);
}

}  // namespace

void launch(const Params& p, cudaStream_t stream) {
  constexpr std::size_t kMostKeys = std::size_t{kMaxParts} * kMaxWidth;
  int capacity = 0;
  for (int n = 0; n < p.num_parts; ++n) capacity += p.parts[n].lists.k;
  const int bytes = capacity * static_cast<int>(sizeof(Key));
  const int warps = std::clamp(kKeyBytes / bytes, 1, kMaxWarps);
  launch_kernel(kernel,
                {.grid = dim3(static_cast<unsigned>((p.rows + warps - 1) / warps)),
                 .block = dim3(static_cast<unsigned>(warps * 32)),
                 .shared_bytes = static_cast<std::size_t>(warps) * static_cast<std::size_t>(bytes),
                 .most_shared_bytes = std::max<std::size_t>(kKeyBytes, kMostKeys * sizeof(Key)),
                 .stream = stream},
                p, capacity);
}

}  // namespace msa::cuda::common::merge_selections
